"""Tool calls, one file a notation; `registry` finds a model's."""
