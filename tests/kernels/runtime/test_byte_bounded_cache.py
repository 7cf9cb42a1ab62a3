"""Results are kept while there is room."""

from concurrent.futures import ThreadPoolExecutor

from sparsefx.kernels.runtime.byte_bounded_cache import ByteBoundedCache


def test_the_least_recently_used_goes_first():
    made = []

    def make(name, size):
        made.append(name)
        return name, size

    kept = ByteBoundedCache(make, lambda result: result[1], most=10)
    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4)):
        assert kept(name, size) == (name, size)
    assert made == ["a", "b", "c", "b"]
    kept("larger than all", 11)
    kept("larger than all", 11)
    kept("a", 4)
    assert made[4:] == ["larger than all", "a"]
    kept.cache_clear()
    kept("a", 4)
    assert made[6:] == ["a"]


def test_threads_that_make_the_same_count_it_once():
    kept = ByteBoundedCache(lambda name: name, lambda _: 6, most=12)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(kept, ["a", "b"] * 500))
    made = []
    again = ByteBoundedCache(lambda name: made.append(name), lambda _: 6, most=12)
    for name in ("a", "b", "a", "b"):
        again(name)
    assert made == ["a", "b"]
    assert kept._bytes == 12
