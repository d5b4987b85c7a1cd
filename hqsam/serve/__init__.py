"""`hqsam serve`: annotating a folder of pictures by clicks, boxes and proposals; a server and its page.

The messages that pass between them are in `hqsam.serve.messages`, the addresses in `hqsam.serve.routes`.
"""

from __future__ import annotations
