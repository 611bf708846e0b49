"""Runs the Python blocks of a page of the documentation, in order and in one namespace, against the network under test.

    run_document.py PAGE
"""

import os
import re
import sys

from clients import error_of, s3

page = sys.argv[1]
with open(page, encoding="utf-8") as file:
    text = file.read()
namespace = {"s3": s3(), "error_of": error_of, "endpoint": os.environ["HOLDFAST_S3"]}
blocks = 0
for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
    line = text[: match.start()].count("\n") + 1
    # Line numbers of the page, so that a failure points to it.
    source = "\n" * line + match.group(1)
    exec(compile(source, page, "exec"), namespace)
    blocks += 1
    print(f"held: {page}:{line}")
assert blocks > 0, "the page has no Python block"
print(f"blocks: {blocks}")
