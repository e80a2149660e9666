"""Some rounds of ``make soak-cache``: a cache that loses, cuts and changes bytes under mounts."""

import pytest

from tests.support.mounts.mounting import needs_fuse
from tools.soak_cache import soak

pytestmark = needs_fuse


@pytest.mark.parametrize("seed", [1, 2])
def test_no_wrong_byte_once_it_could_be_known(tmp_path, seed) -> None:
    assert soak(0.0, seed, tmp_path) == 0
