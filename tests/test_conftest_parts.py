from service.contracts.store import ObjectStore
from service.settings import ServiceSettings


def test_store_and_database_come_up(object_store: ObjectStore, service_settings: ServiceSettings) -> None:
    object_store.put("a/b", b"x")
    assert object_store.get("a/b") == b"x"
    assert service_settings.base_models
