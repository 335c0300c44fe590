"""`python3 -m lowsuper`: the same as the program `lowsuper`."""

import sys

from lowsuper.cli import main

sys.exit(main())
