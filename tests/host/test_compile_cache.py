"""The cache of compiled programs is bounded."""

import os

from asap_jax.host import compile_cache


def test_what_was_used_longest_ago_is_deleted_first(tmp_path):
    for age, name in enumerate(("newest", "read today", "old", "oldest")):
        path = tmp_path / name
        path.write_bytes(bytes(100))
        written = 1e9 - 1000 * age
        os.utime(path, (2e9 if name == "read today" else written, written))
    (tmp_path / "a folder").mkdir()
    compile_cache.bound(tmp_path, 10**6)
    assert len(list(tmp_path.iterdir())) == 5
    compile_cache.bound(tmp_path, 200 + (tmp_path / "a folder").stat().st_size)
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"newest", "read today"}
    compile_cache.bound(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]
    compile_cache.bound(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()
