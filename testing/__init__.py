"""For tests of circuits: backends compared, golden texts, a catalogue of cases, random circuits.

The pytest plugin is loaded by itself where tapeout is installed: the fixture `circuit_golden`, and `--update-golden`.
"""

from tapeout.testing import cases
from tapeout.testing.agree import assert_backends_agree
from tapeout.testing.random_circuits import random_circuit

__all__ = ["assert_backends_agree", "cases", "random_circuit"]
