"""`python -m onestep_bench.cli`, where the script `onestep-bench` is not on the path."""

import sys

from onestep_bench.cli import main

sys.exit(main())
