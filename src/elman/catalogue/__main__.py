"""``python -m elman.catalogue FILE`` writes the catalogue as a document."""

import sys
from pathlib import Path

from elman.catalogue.markdown import document

if len(sys.argv) != 2:
    sys.exit("usage: python -m elman.catalogue FILE")
Path(sys.argv[1]).write_text(document(), encoding="utf-8")
