"""No circle of imports in the product, and the search that says so finds one."""

from __future__ import annotations

from tests.structure import circles, imports


def test_the_product_has_no_circle_of_imports() -> None:
    graph = imports()
    assert circles(graph) == []
    assert "router_backend.settings" in graph["router_backend.service.loader"], "the graph has its edges"


def test_a_circle_is_found_once() -> None:
    graph = {"alone": {"a"}, "a": {"b"}, "b": {"c"}, "c": {"a", "leaf"}, "leaf": set(), "self": set[str]()}
    assert circles(graph) == [{"a", "b", "c"}]
