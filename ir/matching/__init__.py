"""Finding nodes: matchers, the states that walk down paths, searches."""
