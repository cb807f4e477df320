import itertools

import pytest

from tests.service.conftest import Service
from tests.service.stage import Stage


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    """Puts things in place behind the running application; call its methods through `service.call`."""
    return Stage(service.resources, itertools.count())
