"""The program in the sandbox of python graders. Modules that graders may use are imported here:
once the process is confined, no file can be opened any more."""

from __future__ import annotations

import collections
import datetime
import decimal
import difflib
import fractions
import functools
import itertools
import json
import math
import random
import re
import statistics
import string
import textwrap
import unicodedata
from typing import Any

# Named, so that nobody takes the imports for left over.
AVAILABLE = (
    collections, datetime, decimal, difflib, fractions, functools, itertools, json, math, random,
    re, statistics, string, textwrap, unicodedata,
)  # fmt: skip


def run_grade(source: str, sample: dict[str, Any], item: dict[str, Any]) -> float:
    """The number that `grade(sample, item)` of the program returns. Raises what it raises."""
    scope: dict[str, Any] = {"__name__": "grader"}
    exec(compile(source, "grader.py", "exec"), scope)  # noqa: S102 - in a confined process
    score = float(scope["grade"](sample, item))
    if not math.isfinite(score):
        raise ValueError(f"grade() returned {score}, which is no finite number")
    return score
