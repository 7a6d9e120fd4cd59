"""The declared weight formats."""

from __future__ import annotations

import pytest
from hagane.system.errors import ConfigurationError
from hagane.system.weight_formats import WEIGHT_FORMATS


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
def test_fp8_needs_a_gpu_that_multiplies_it(capability):
    with pytest.raises(ConfigurationError, match=r"8\.9 or later.*{}\.{}".format(*capability)):
        WEIGHT_FORMATS["fp8"].check_capability("cuda:0", capability)


@pytest.mark.parametrize(
    ("name", "capability"), [("fp8", (8, 9)), ("fp8", (9, 0)), ("int4", (7, 0))]
)
def test_others_compute_in_their_format(name, capability):
    WEIGHT_FORMATS[name].check_capability("cuda:0", capability)
