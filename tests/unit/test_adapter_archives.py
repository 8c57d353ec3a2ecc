"""Archives of adapters: only two files are ever extracted, into the service's own folder, whatever the archive says."""

from __future__ import annotations

import bz2
import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.errors import InvalidAdapter, TooLarge
from tunewright.registry import adapter_archive
from tunewright.registry.adapter_archive import MOST_MEMBERS, unpack

FILES = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": bytes(range(256)) * 999}
LARGEST = 10**6
CONFIG, WEIGHTS = FILES
Pack = Callable[[Mapping[str, bytes]], bytes]


def tar(files: Mapping[str, bytes], mode: str = "w", format: int = tarfile.GNU_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def tar_of(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """An archive of the valid files and one more member as given."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(member, io.BytesIO(content))
        for name, bytes_ in FILES.items():
            plain = tarfile.TarInfo(name)
            plain.size = len(bytes_)
            archive.addfile(plain, io.BytesIO(bytes_))
    return target.getvalue()


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


PACKED: dict[str, Pack] = {
    "tar": tar,
    "ustar": lambda files: tar(files, format=tarfile.USTAR_FORMAT),
    "pax": lambda files: tar(files, format=tarfile.PAX_FORMAT),
    "tar.gz": lambda files: tar(files, "w:gz"),
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
}


def taken(content: bytes, into: Path, largest: int = LARGEST, folder: str | None = None) -> dict[str, bytes]:
    """The extracted files."""
    into.mkdir()
    unpack(io.BytesIO(content), into, largest, folder)
    return {path.name: path.read_bytes() for path in into.iterdir()}


def refused(content: bytes, into: Path, largest: int = LARGEST, folder: str | None = None) -> str:
    into.mkdir()
    with pytest.raises((InvalidAdapter, TooLarge)) as caught:
        unpack(io.BytesIO(content), into, largest, folder)
    assert {path.name for path in into.parent.rglob("*") if path.is_file()} <= set(FILES)
    return caught.value.message


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("folder", ["", "./", "my-adapter/", "./ft:tiny:ä b:1/"])
def test_the_two_files_come_out(tmp_path: Path, pack: Pack, folder: str) -> None:
    assert taken(pack({folder + name: content for name, content in FILES.items()}), tmp_path / "a") == FILES


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_other_files_are_passed_over(tmp_path: Path, pack: Pack) -> None:
    around = {
        "a/README.md": b"# card", "a/tokenizer.json": b"{}" * 1000, "a/optimizer.pt": b"\x80\x02pickle",
        "a/adapter_model.bin": b"\x80\x02pickle", "a/checkpoint-8/adapter_config.json": b"{}",
        "__MACOSX/a/._adapter_config.json": b"x",
    }  # fmt: skip
    files = {f"a/{name}": content for name, content in FILES.items()}
    assert taken(pack({**around, **files, "a/training_args.bin": b"x"}), tmp_path / "a") == FILES


def test_folders_are_members_too(tmp_path: Path) -> None:
    files = {"./": b"", "./a/": b"", "./a/empty/": b"", **{f"./a/{n}": c for n, c in FILES.items()}}
    assert taken(tar(files), tmp_path / "a") == FILES
    assert (
        taken(zipped({k.removeprefix("./"): v for k, v in files.items() if k != "./"}), tmp_path / "b")
        == FILES
    )


# names


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize(
    "name",
    [
        "/etc/adapter_config.json", "../adapter_config.json", "a/../../adapter_config.json", "a/../x",
        "//x", "..\\adapter_config.json", "C:\\x", "C:/x", "a\\..\\x",
    ],
)  # fmt: skip
def test_a_name_that_leads_out_is_refused(tmp_path: Path, pack: Pack, name: str) -> None:
    before = sorted(tmp_path.parent.iterdir())
    assert "leads out" in refused(pack({name: b"x", **FILES}), tmp_path / "a")
    assert sorted(tmp_path.parent.iterdir()) == before


def run(**folders: bytes) -> dict[str, bytes]:
    """The files of a run: an adapter in each folder, whose weights are the given bytes."""
    return {
        f"{folder.replace('_', '/')}/{name}": weights if name == WEIGHTS else FILES[name]
        for folder, weights in folders.items()
        for name in FILES
    }


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_of_a_runs_folders_the_highest_is_taken(tmp_path: Path, pack: Pack) -> None:
    content = pack(
        {**run(out_checkpoint_2=b"2", out=b"last", out_checkpoint_1=b"1"), "out/optimizer.pt": b"x"}
    )
    assert taken(content, tmp_path / "a")[WEIGHTS] == b"last"
    assert taken(pack(run(a_b_c=b"deep")), tmp_path / "b")[WEIGHTS] == b"deep"


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_one_of_several_folders_has_to_be_named(tmp_path: Path, pack: Pack) -> None:
    content = pack(run(run_checkpoint1=b"1", run_checkpoint2=b"2", run_other_checkpoint2=b"3"))
    message = refused(content, tmp_path / "a")
    assert "several folders (run/checkpoint1, run/checkpoint2)" in message
    assert "`folder`" in message
    assert taken(content, tmp_path / "b", folder="checkpoint1")[WEIGHTS] == b"1"
    assert taken(content, tmp_path / "c", folder="checkpoint2/")[WEIGHTS] == b"2"
    assert taken(content, tmp_path / "d", folder="./other/checkpoint2")[WEIGHTS] == b"3"
    assert "in a folder 'checkpoint3'" in refused(content, tmp_path / "e", folder="checkpoint3")
    assert "in a folder 'point1'" in refused(content, tmp_path / "f", folder="point1")


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_both_files_are_in_one_folder(tmp_path: Path, pack: Pack) -> None:
    assert "different folders" in refused(pack({CONFIG: b"{}", f"a/{WEIGHTS}": b""}), tmp_path / "b")
    deep = {f"a/b/c/d/e/{name}": content for name, content in FILES.items()}
    assert f"no {CONFIG}" in refused(pack(deep), tmp_path / "c")
    assert f"no {WEIGHTS}" in refused(pack({CONFIG: b"{}"}), tmp_path / "d")


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_checkpoints_do_not_stand_in_for_pickled_weights(tmp_path: Path, pack: Pack) -> None:
    files = {CONFIG: b"{}", "adapter_model.bin": b"x", **run(checkpoint=b"1")}
    assert "pickled" in refused(pack(files), tmp_path / "a")
    assert taken(pack(files), tmp_path / "b", folder="checkpoint")[WEIGHTS] == b"1"


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_weights_of_mlx_come_out_by_their_name(tmp_path: Path, pack: Pack) -> None:
    files = {CONFIG: b"{}", "adapters.safetensors": b"x", "0000100_adapters.safetensors": b"y"}
    assert taken(pack(files), tmp_path / "a") == {CONFIG: b"{}", "adapters.safetensors": b"x"}


@pytest.mark.parametrize("pack", [tar, zipped])
def test_the_checkpoints_of_a_run_are_counted_together(tmp_path: Path, pack: Pack) -> None:
    content = pack(run(a=b"0" * 400_000, b_c=b"0" * 400_000, b_d=b"0" * 400_000))
    message = refused(content, tmp_path / "a", largest=10**6)
    assert "limit (--max-adapter-size)" in message
    assert written(tmp_path / "a") <= 10**6 + 2**16


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    for index, second in enumerate((f"./{CONFIG}", f".//{CONFIG}")):
        for pack in (tar, zipped):
            assert "twice" in refused(pack({second: b"[]", **FILES}), tmp_path / f"{index}{pack.__name__}")
    again = tarfile.TarInfo(CONFIG)
    assert "twice" in refused(tar_of(again), tmp_path / "tar")
    with zipfile.ZipFile(target := io.BytesIO(), "w") as archive:
        archive.writestr(CONFIG, b"{}")
        archive.writestr(CONFIG, b"[]")
    assert "twice" in refused(target.getvalue(), tmp_path / "zip")


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_pickled_weights_are_told_as_such(tmp_path: Path, pack: Pack) -> None:
    for end in ("bin", "pt", "pth", "ckpt"):
        message = refused(pack({CONFIG: b"{}", f"adapter_model.{end}": b"\x80\x02"}), tmp_path / end)
        assert "pickled" in message
        assert "save_pretrained" in message


# kinds


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        b"S",
        b"Z",
    ],
)
@pytest.mark.parametrize("name", [CONFIG, "a/other"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    message = refused(tar_of(member), tmp_path / "a")
    assert "link, a device or a sparse file" in message or "twice" in message or "broken" in message


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zips_links_are_refused(tmp_path: Path, mode: int) -> None:
    member = zipfile.ZipInfo("a/x")
    member.create_system, member.external_attr = 3, (mode | 0o777) << 16
    with zipfile.ZipFile(target := io.BytesIO(), "w") as archive:
        archive.writestr(member, "/etc/passwd")
        for name, content in FILES.items():
            archive.writestr(name, content)
    assert "link or a device" in refused(target.getvalue(), tmp_path / "a")


def test_a_sparse_file_of_the_newer_kind_is_refused(tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(WEIGHTS)
        member.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1,900000000000,1",
            "GNU.sparse.size": "900000000001", "GNU.sparse.name": WEIGHTS,
        }  # fmt: skip
        member.size = 2
        archive.addfile(member, io.BytesIO(b"ab"))
    assert "sparse" in refused(target.getvalue(), tmp_path / "a")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(FILES, zipfile.ZIP_STORED))
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    assert "encrypted" in refused(bytes(content), tmp_path / "a")


def test_a_zip_whose_parts_differ_is_told_without_bytes_of_pythons(tmp_path: Path) -> None:
    content = bytearray(zipped(FILES))
    content[40] ^= 0xFF  # in the name before the content, and not in that of the table
    message = refused(bytes(content), tmp_path / "into")
    assert "broken: its parts do not fit together. Pack" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_pack_are_refused(tmp_path: Path, method: int) -> None:
    """Their libraries unpack a kilobyte into a gigabyte in one call."""
    assert "another method than deflate" in refused(zipped(FILES, method), tmp_path / "a")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"GGUF" * 200, b"\0" * 2048, bz2.compress(tar(FILES)), b"PK\x05\x06" * 9]
)
def test_what_is_no_archive_says_what_would_be(tmp_path: Path, content: bytes) -> None:
    assert "neither .tar, .tar.gz nor .zip" in refused(content, tmp_path / "a")


# sizes


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_what_comes_out_is_counted(tmp_path: Path, pack: Pack) -> None:
    content = pack({CONFIG: b"{}", WEIGHTS: b"\0" * 50_001})
    assert "limit (--max-adapter-size)" in refused(content, tmp_path / "a", largest=50_000)
    assert len(taken(content, tmp_path / "b", largest=50_001)[WEIGHTS]) == 50_001


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_a_config_has_a_limit_of_its_own(tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_archive, "LARGEST_CONFIG", 1000)
    assert "1000 bytes" in refused(pack({**FILES, CONFIG: b" " * 1001}), tmp_path / "a")


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    """30 MB of zeros in 30 kB, in each format, with and without a false size in the header."""
    huge = b"\0" * 3 * 10**7
    bombs = [gzip.compress(tar({WEIGHTS: huge})), zipped({WEIGHTS: huge})]
    lying = bytearray(bombs[1])
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", lying, lying.index(mark) + at, 10)
    bombs += [bytes(lying), gzip.compress(huge), gzip.compress(tar({"other": huge}))]
    tracemalloc.start()
    for index, bomb in enumerate(bombs):
        refused(bomb, tmp_path / str(index), largest=10**6)
        assert written(tmp_path / str(index)) <= 10**6 + 2**16
    assert tracemalloc.get_traced_memory()[1] < 4 * 10**6
    tracemalloc.stop()


def test_what_is_passed_over_counts_in_a_tar_and_is_not_read_in_a_zip(tmp_path: Path) -> None:
    around = {f"{n}.bin": b"\0" * 10**6 for n in range(5)}
    assert "unpacked" in refused(tar({**around, **FILES}), tmp_path / "a", largest=10**6)
    assert taken(zipped({**around, **FILES}), tmp_path / "b", largest=10**6) == FILES


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_members_have_a_limit(tmp_path: Path, pack: Pack) -> None:
    many = {f"{n}": b"" for n in range(MOST_MEMBERS)}
    assert f"more than {MOST_MEMBERS} members" in refused(pack({**many, **FILES}), tmp_path / "a")
    folders = {f"{n}/": b"" for n in range(MOST_MEMBERS)}
    assert f"more than {MOST_MEMBERS} members" in refused(pack({**folders, **FILES}), tmp_path / "b")


def test_a_tars_headers_are_not_read_into_memory(tmp_path: Path) -> None:
    for index, name in enumerate(("x" * 10**7, "long/" * 10_000)):
        assert "headers" in refused(tar({name: b"", **FILES}), tmp_path / str(index), largest=10**8)
    member = tarfile.TarInfo("x")
    member.pax_headers = {"comment": "y" * 10**7}
    with tarfile.open(fileobj=(target := io.BytesIO()), mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    content = gzip.compress(target.getvalue())
    tracemalloc.start()
    assert "headers" in refused(content, tmp_path / "pax", largest=10**8)
    assert tracemalloc.get_traced_memory()[1] < 4 * 10**6
    tracemalloc.stop()


def test_a_large_member_buys_no_large_header(tmp_path: Path) -> None:
    with tarfile.open(fileobj=(target := io.BytesIO()), mode="w", format=tarfile.PAX_FORMAT) as archive:
        first, second = tarfile.TarInfo("big"), tarfile.TarInfo("x")
        first.size = 10**6
        archive.addfile(first, io.BytesIO(b"\0" * first.size))
        second.pax_headers = {"comment": "y" * 200_000}
        archive.addfile(second)
    assert "headers" in refused(target.getvalue(), tmp_path / "a", largest=10**7)


def test_a_zips_table_of_contents_has_a_limit(tmp_path: Path) -> None:
    many = zipped({f"{n:0200}": b"" for n in range(5000)}, zipfile.ZIP_STORED)
    assert "table of contents" in refused(many, tmp_path / "a")


# damage


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, pack: Pack) -> None:
    content = pack(FILES)
    for share in (0.01, 0.3, 0.6):
        refused(content[: int(len(content) * share)], tmp_path / str(share))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(form=st.sampled_from(sorted(PACKED)), changes=st.data())
def test_no_damage_leads_anywhere_but_to_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, form: str, changes: Any
) -> None:
    """Bytes are changed, removed or inserted anywhere: the two files are extracted, or the archive is refused."""
    content = bytearray(
        PACKED[form]({"a/": b"", "a/x": b"y" * 600, **{f"a/{n}": c[:700] for n, c in FILES.items()}})
    )
    for _ in range(changes.draw(st.integers(1, 6))):
        at = changes.draw(st.integers(0, len(content) - 1))
        new = changes.draw(st.binary(max_size=12))
        content[at : at + changes.draw(st.integers(0, 12))] = new
    outer = tmp_path_factory.mktemp("damage")
    into = outer / "into"
    into.mkdir()
    try:
        unpack(io.BytesIO(bytes(content)), into, 10_000)
    except (InvalidAdapter, TooLarge):
        pass
    found = [path for path in outer.rglob("*") if path.is_file() or path.is_symlink()]
    assert all(path.name in FILES and not path.is_symlink() for path in found)
    assert all(path.parent == into or path.parent == into / path.parent.name for path in found)
    assert written(outer) <= 20_000


def test_a_full_disk_is_the_callers_business(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 600:
                raise OSError(28, "No space left on device")
            return super().read(size)

    with pytest.raises(OSError, match="No space"):
        unpack(Full(tar(FILES)), tmp_path, LARGEST)
