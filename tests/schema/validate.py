"""Validates documents against a schema.

Reads {"schema": ..., "documents": {name: document}} and writes {name: [why it is refused, ...]}.
"""

import json
import sys

from jsonschema import Draft202012Validator

given = json.load(sys.stdin)
Draft202012Validator.check_schema(given["schema"])
validator = Draft202012Validator(given["schema"])
json.dump(
    {
        name: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
        for name, document in given["documents"].items()
    },
    sys.stdout,
)
