"""From a circuit to something callable."""
