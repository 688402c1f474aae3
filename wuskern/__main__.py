"""What ``python -m wuskern`` runs: the command line."""

import sys

from wuskern.cli import main

sys.exit(main())
