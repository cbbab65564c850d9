import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from camshaft.handlers.checkpoint_store import BrokenCheckpointError, CheckpointStore

STATE = {"model": {"weight": torch.arange(1000.0)}, "losses": [0.5, float("nan")], "name": "ä"}


def written(directory, *iterations, state=STATE, **metadata):
    """A store with a checkpoint after each of the iterations."""
    store = CheckpointStore(directory)
    for iteration in iterations:
        store.write(f"iteration={iteration}", state, {"iteration": iteration, "epoch": 1, **metadata})
    return store


def whole_ones(store):
    return [checkpoint.iteration for checkpoint in store.list()]


def hidden_in(directory):
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


def test_what_was_written_is_read(tmp_path):
    store = written(tmp_path, 1)
    state = store.read(tmp_path / "iteration=1")
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert (state["losses"][0], state["name"]) == (0.5, "ä")


def test_it_is_an_ordinary_file_of_torch_with_its_digest_beside_it(tmp_path):
    written(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "iteration=1").iterdir()) == ["metadata.json", "state.pt"]
    assert torch.load(tmp_path / "iteration=1" / "state.pt", weights_only=True).keys() == STATE.keys()


def test_the_newest_is_the_one_that_was_written_last_whatever_its_iteration(tmp_path):
    store = written(tmp_path, 10, 20, 5)
    assert whole_ones(store) == [10, 20, 5]
    assert store.newest_whole()[0].iteration == 5


def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path):
    store = written(tmp_path, 1)
    store.write("iteration=1", {"new": torch.ones(1)}, {"iteration": 1, "epoch": 1})
    assert store.read(tmp_path / "iteration=1") == {"new": torch.ones(1)}
    assert hidden_in(tmp_path) == []


def test_an_empty_store_has_none(tmp_path):
    assert CheckpointStore(tmp_path / "nowhere").newest_whole() is None
    assert CheckpointStore(tmp_path / "nowhere").list() == []


def test_one_of_a_finished_run_comes_last_if_a_running_one_is_asked_for(tmp_path):
    store = written(tmp_path, 1)
    store.write("finished", STATE, {"iteration": 2, "epoch": 1, "finished": True})
    assert store.newest_whole()[0].iteration == 2
    assert store.newest_whole(running=True)[0].iteration == 1
    shutil.rmtree(tmp_path / "iteration=1")
    assert store.newest_whole(running=True)[0].iteration == 2


class TestABrokenOne:
    @pytest.mark.parametrize("sixteenth", range(16))
    @pytest.mark.parametrize("name", ["state.pt", "metadata.json"])
    def test_that_was_truncated_is_named_and_the_one_before_it_is_used(self, tmp_path, name, sixteenth):
        store = written(tmp_path, 1, 2)
        path = tmp_path / "iteration=2" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * sixteenth // 16])
        with pytest.warns(UserWarning, match=rf"iteration=2 is broken: {name}.*iteration=1 is used instead"):
            assert store.newest_whole()[0].iteration == 1

    # The local header of the first entry, the pickle, a tensor, the directory of the zip, its end; then the metadata.
    @pytest.mark.parametrize("part", [0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 0.95, 0.999])
    @pytest.mark.parametrize("name", ["state.pt", "metadata.json"])
    def test_in_which_one_bit_was_flipped_is_found_out(self, tmp_path, name, part):
        store = written(tmp_path, 1)
        path = tmp_path / "iteration=1" / name
        content = bytearray(path.read_bytes())
        content[int(len(content) * part)] ^= 1
        path.write_bytes(content)
        with pytest.raises(BrokenCheckpointError, match=f"iteration=1 is broken: {name}"):
            store.read(tmp_path / "iteration=1")

    def test_with_a_flipped_bit_in_any_byte_of_its_metadata_is_found_out(self, tmp_path):
        store = written(tmp_path, 1)
        path = tmp_path / "iteration=1" / "metadata.json"
        content = path.read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            if _says_the_same(changed, content):  # white space
                continue
            with pytest.raises(BrokenCheckpointError, match=r"metadata\.json"):
                store.verify(tmp_path / "iteration=1")

    @pytest.mark.parametrize("name", ["state.pt", "metadata.json"])
    def test_of_which_a_file_is_missing_is_told_of(self, tmp_path, name):
        store = written(tmp_path, 1)
        (tmp_path / "iteration=1" / name).unlink()
        with pytest.raises(BrokenCheckpointError, match="No such file or directory"):
            store.read(tmp_path / "iteration=1")

    def test_is_an_error_if_none_is_whole_and_nothing_is_deleted(self, tmp_path):
        store = written(tmp_path, 1, 2)
        for path in tmp_path.rglob("state.pt"):
            path.write_bytes(b"")
        with pytest.raises(BrokenCheckpointError, match=r"No checkpoint in .* is whole.*iteration=2.*iteration=1"):
            store.newest_whole()
        assert len(list(tmp_path.rglob("state.pt"))) == 2


def _says_the_same(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


class TestAKill:
    def test_while_the_files_are_written_leaves_nothing_that_counts(self, tmp_path):
        store = written(tmp_path, 1)
        shutil.copytree(tmp_path / "iteration=1", tmp_path / ".writing-iteration=2")
        assert whole_ones(store) == [1]
        store.clear_leftovers()
        assert hidden_in(tmp_path) == []

    def test_between_the_renames_brings_back_what_was_to_be_replaced(self, tmp_path):
        store = written(tmp_path, 1)
        shutil.copytree(tmp_path / "iteration=1", tmp_path / ".writing-iteration=1")
        (tmp_path / "iteration=1").rename(tmp_path / ".replaced-iteration=1")
        store.clear_leftovers()
        assert whole_ones(store) == [1]
        assert hidden_in(tmp_path) == []

    def test_after_the_renames_leaves_the_new_one(self, tmp_path):
        store = written(tmp_path, 1)
        shutil.copytree(tmp_path / "iteration=1", tmp_path / ".replaced-iteration=1")
        store.clear_leftovers()
        assert whole_ones(store) == [1]
        assert hidden_in(tmp_path) == []

    def test_while_one_is_deleted_leaves_nothing_that_counts(self, tmp_path):
        store = written(tmp_path, 1, 2)
        (tmp_path / "iteration=1").rename(tmp_path / ".writing-iteration=1")
        (tmp_path / ".writing-iteration=1" / "state.pt").unlink()
        assert whole_ones(store) == [2]
        store.delete(tmp_path / "iteration=2")
        store.clear_leftovers()
        assert list(tmp_path.iterdir()) == []

    def test_at_any_moment_of_writing_leaves_what_was_there_before(self, tmp_path):
        """A process that replaces one checkpoint over and over is killed at many moments."""
        store = CheckpointStore(tmp_path)
        epochs = []
        for moment in range(30):
            process = os.fork()
            if process == 0:
                for number in range(10**6):
                    state = {"weight": torch.full((100_000,), float(number))}
                    store.write("iteration=1", state, {"iteration": 1, "epoch": number})
            time.sleep(0.01 + moment * 0.0037)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            store.clear_leftovers()
            newest = store.newest_whole()
            assert newest is None or newest[1]["weight"][0] == newest[0].epoch
            assert hidden_in(tmp_path) == []
            epochs.append(newest and newest[0].epoch)
        assert len(set(epochs)) > 3


class TestADiskThatDoesNotPlayAlong:
    @pytest.fixture
    def disk(self, tmp_path):
        """A disk of 1 MB; where this process may not mount one, these tests are left to RLIMIT_FSIZE's."""
        directory = tmp_path / "disk"
        directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not allowed here")
        yield directory
        subprocess.run(["umount", "-l", str(directory)], check=True)

    def test_a_full_one_is_told_of_in_a_sentence_and_keeps_what_it_has(self, disk):
        store = written(disk, 1)
        with pytest.raises(
            OSError, match=r"iteration=2 could not be written: No space left on device \(\d MB are free"
        ):
            written(disk, 2, state={"weight": torch.zeros(10**6)})
        assert whole_ones(store) == [1]
        assert hidden_in(disk) == []
        assert store.newest_whole() is not None

    def test_a_full_one_keeps_the_checkpoint_that_was_to_be_replaced(self, disk):
        store = written(disk, 1)
        with pytest.raises(OSError, match="No space left"):
            written(disk, 1, state={"weight": torch.zeros(10**6)})
        assert torch.equal(store.newest_whole()[1]["model"]["weight"], STATE["model"]["weight"])

    def test_one_that_takes_no_writing_any_more_is_told_of(self, disk):
        store = written(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OSError, match="iteration=2 could not be written: Read-only file system"):
            written(disk, 2)
        assert whole_ones(store) == [1]

    def test_a_file_in_the_place_of_the_directory_is_told_of(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="could not be written: Not a directory"):
            written(tmp_path / "file" / "checkpoints", 1)

    def test_no_temporary_file_is_made_elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", "/nonexistent")
        written(tmp_path, 1)


def test_the_bytes_that_were_written_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """Both files, their directory, and after the renaming the directory above."""
    done = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(_name_of(descriptor)), fsync(descriptor)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b)))
    written(tmp_path / "store", 1)
    assert done == ["state.pt", "metadata.json", ".writing-iteration=1", "rename", "store"]


def _name_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink().name
