"""Let the unit tests share `config_world`."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
