"""One checkpoint of several processes: they save it together, go on with it together, and fail together.

Two processes, then four, do many things in one start each (checkpoint_program.py); the tests read what they found.
"""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from camshaft.__main__ import main
from camshaft.engine import Engine
from camshaft.handlers import Checkpoint
from camshaft.handlers.checkpoint_store import BrokenCheckpointError, CheckpointStore
from tests.handlers import checkpoint_program

ROOT = Path(__file__).parents[2]

ON_TWO = [
    "everything",
    "workers",
    "in_the_background",
    "on_ignites_engine",
    "sharded",
    "sharded_in_the_background",
    "of_one_rank_broken",
    "does_not_fit_one_rank",
    "never",
    "directory_taken",
    "directories_differ",
    "full_disk",
    "full_disk_of_another_rank",
    "full_disk_warned",
    "full_disk_in_the_background",
    "full_disk_of_shards",
    "begin@of-two/exact",
    "begin_sharded@of-two/sharded",
    "begin_with_much@of-two/much",
    "go_on@of-one/exact",
    "go_on_sharded@of-one/copy",
]
ON_FOUR = [
    "everything_at_two_moments",
    "sharded_at_two_moments",
    "go_on@of-two/copies/4",
    "go_on_sharded@of-two/sharded-copies/4",
    "go_on_with_much@of-two/much-copies/4",
    "go_on_with_other_batches@of-two/copies/4-larger",
    "go_on_with_batches_that_do_not_fit@of-two/copies/4-odd",
    "go_on_with_other_data@of-two/copies/4-data",
]


def start(processes, scenarios, folder):
    """Let the processes go through the scenarios; what each found, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    program = Path(checkpoint_program.__file__)
    command = [sys.executable, str(program), ",".join(scenarios), str(folder)]
    started = []
    for rank in range(processes):
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return [json.loads((folder / f"results-{processes}-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The weights of one process that nobody disturbed."""
    return checkpoint_program.undisturbed(folder / "undisturbed")["weights"]


@pytest.fixture(scope="module")
def two(folder):
    checkpoint_program.begin(folder / "of-one" / "exact")
    shutil.copytree(folder / "of-one" / "exact", folder / "of-one" / "copy")
    results = start(2, ON_TWO, folder)
    for name in ("1", "4", "4-larger", "4-odd", "4-data"):
        shutil.copytree(folder / "of-two" / "exact", folder / "of-two" / "copies" / name)
    for name in ("sharded", "much"):
        for copy in ("1", "4"):
            shutil.copytree(folder / "of-two" / name, folder / "of-two" / f"{name}-copies" / copy)
    return results


@pytest.fixture(scope="module")
def four(two, folder):
    return start(4, ON_FOUR, folder)


@pytest.mark.distributed
@pytest.mark.slow
class TestAResumedRun:
    @pytest.mark.parametrize("scenario", ["everything", "workers", "in_the_background", "on_ignites_engine"])
    def test_of_two_processes_ends_in_the_same_bits_on_both(self, two, scenario):
        assert [result[scenario] for result in two] == [[], []]

    @pytest.mark.parametrize("scenario", ["sharded", "sharded_in_the_background"])
    def test_of_a_model_sharded_over_two_processes_does_so(self, two, scenario):
        assert [result[scenario] for result in two] == [[], []]

    @pytest.mark.parametrize("scenario", ["everything_at_two_moments", "sharded_at_two_moments"])
    def test_of_four_processes_does_so(self, four, scenario):
        assert [result[scenario] for result in four] == [[]] * 4


@pytest.mark.distributed
@pytest.mark.slow
class TestAllProcesses:
    def test_go_on_with_the_one_before_if_the_file_of_one_of_them_is_broken(self, two):
        assert [result["of_one_rank_broken"]["iteration"] for result in two] == [10, 10]
        (warning,) = two[0]["of_one_rank_broken"]["warnings"]
        assert "rank-1.pt is not what was written" in warning
        assert "iteration=00000005,epoch=1 is used instead" in warning

    def test_are_left_as_they_were_if_it_does_not_fit_one_of_them(self, two):
        for result in two:
            kind, sentence = result["does_not_fit_one_rank"]["error"]
            assert kind == "ValueError"
            assert "'other' (Picky) cannot take its state: not this one. Nothing was changed." in sentence
            assert not result["does_not_fit_one_rank"]["changed"]

    def test_refuse_a_directory_that_has_checkpoints_if_told_never_to_resume(self, two):
        for result in two:
            kind, sentence = result["never"]
            assert (kind, "has checkpoints of an earlier run" in sentence) == ("ValueError", True)

    def test_are_told_who_else_trains_in_the_directory(self, two):
        for result in two:
            kind, sentence = result["directory_taken"]
            assert kind == "BlockingIOError"
            assert re.match(r"The process \d+ is training in ", sentence)
        assert two[0]["directory_taken"] == two[1]["directory_taken"]

    def test_must_have_the_same_directory(self, two):
        for result in two:
            kind, sentence = result["directories_differ"]
            assert kind == "ValueError"
            assert sentence.startswith("2 processes make one checkpoint together, but their directories differ: ")

    @pytest.mark.parametrize(
        "scenario", ["full_disk", "full_disk_of_another_rank", "full_disk_in_the_background", "full_disk_of_shards"]
    )
    def test_fail_with_the_same_sentence_if_one_of_them_cannot_write(self, two, scenario):
        errors = [result[scenario]["error"] for result in two]
        assert errors[0] == errors[1]
        assert errors[0][0] == "OSError"
        assert re.search(r"The checkpoint \S+ could not be written: File too large", errors[0][1])

    @pytest.mark.parametrize("scenario", ["full_disk", "full_disk_of_another_rank", "full_disk_of_shards"])
    def test_leave_the_earlier_checkpoint_and_nothing_else_then(self, two, scenario):
        assert two[0][scenario]["left"] == ["iteration=00000005,epoch=1"]

    def test_warn_and_go_on_if_they_are_to_warn(self, two):
        for result in two:
            assert result["full_disk_warned"]["error"] is None
            assert all("The run goes on without it." in one for one in result["full_disk_warned"]["warnings"])
            assert len(result["full_disk_warned"]["warnings"]) == 2


@pytest.mark.distributed
@pytest.mark.slow
class TestAnotherNumberOfProcesses:
    REST = ([2, 7], [2, 8], [2, 9], [2, 10])

    def check(self, results, undisturbed, line):
        """They go on from the same sample to the same weights, as exactly as additions in another order allow."""
        for result in results:
            assert result["seen"] == list(self.REST)
            assert result["weights"] == pytest.approx(undisturbed, abs=1e-10)
        assert results[0]["lines"][0].endswith("the order in which gradients are added up differ.")
        assert line in results[0]["lines"][0]
        assert [len(result["lines"]) for result in results] == [1] + [0] * (len(results) - 1)

    def test_of_one_goes_on_as_two(self, two, undisturbed):
        results = [result["go_on@of-one/exact"] for result in two]
        self.check(results, undisturbed, "was saved by one process and goes on with 2.")

    def test_of_one_goes_on_as_two_that_are_sharded(self, two, undisturbed):
        results = [result["go_on_sharded@of-one/copy"] for result in two]
        self.check(results, undisturbed, "was saved by one process and goes on with 2.")

    def test_of_two_goes_on_as_four(self, four, undisturbed):
        results = [result["go_on@of-two/copies/4"] for result in four]
        self.check(results, undisturbed, "was saved by 2 processes and goes on with 4.")

    def test_of_two_that_are_sharded_goes_on_as_four(self, four, undisturbed):
        results = [result["go_on_sharded@of-two/sharded-copies/4"] for result in four]
        self.check(results, undisturbed, "was saved by 2 processes and goes on with 4.")

    @pytest.mark.parametrize("begun", ["copies", "sharded-copies"], ids=["whole", "sharded"])
    def test_of_two_goes_on_as_one(self, two, folder, undisturbed, begun):
        result = checkpoint_program.go_on(folder / "of-two" / begun / "1")
        self.check([result], undisturbed, "was saved by 2 processes and goes on with 1.")

    def test_have_random_numbers_of_their_own(self, four):
        assert len({result["go_on@of-two/copies/4"]["random"] for result in four}) == 4

    def test_take_all_that_has_state_along(self, two, four, folder):
        results = [result["go_on_with_much@of-two/much-copies/4"] for result in four]
        results.append(checkpoint_program.go_on(folder / "of-two" / "much-copies" / "1", checkpoint_program.much))
        for result in results:
            assert result["seen"] == list(self.REST)
            assert result["steps"] == 6

    def test_with_larger_batches_go_on_at_the_same_sample_in_fewer_iterations(self, four):
        # Saved after 8 of the 40 samples of the second epoch, in batches of 8; now 16 make one, 3 of them an epoch.
        for result in four:
            assert result["go_on_with_other_batches@of-two/copies/4-larger"]["seen"] == [[2, 4], [2, 5], [2, 6]]
        (line,) = four[0]["go_on_with_other_batches@of-two/copies/4-larger"]["lines"]
        assert "goes on with 4, where it is iteration 3 now; 8 samples are seen a second time" in line

    def test_with_batches_that_fit_into_no_whole_number_see_samples_again_and_say_so(self, four):
        for result in four:
            assert result["go_on_with_batches_that_do_not_fit@of-two/copies/4-odd"]["seen"] == [[2, 3], [2, 4]]
        (line,) = four[0]["go_on_with_batches_that_do_not_fit@of-two/copies/4-odd"]["lines"]
        assert "8 samples are seen a second time, because its batches do not fit" in line

    def test_with_another_number_of_samples_are_refused(self, four):
        for result in four:
            kind, sentence = result["go_on_with_other_data@of-two/copies/4-data"]
            assert kind == "ValueError"
            assert "with 5 iterations an epoch, each of 8 samples, but now there are 5 of 16" in sentence


@pytest.mark.distributed
@pytest.mark.slow
class TestTheCommandLine:
    def test_lists_by_how_many_processes_a_checkpoint_was_saved(self, two, folder, capsys):
        assert main(["checkpoints", str(folder / "of-two" / "sharded")]) == 0
        assert capsys.readouterr().out.rstrip().endswith("whole, of 2 processes")

    def test_can_start_all_of_them_again(self, two, folder):
        record = json.loads((folder / "everything" / "whole" / "run.json").read_text())
        launch = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", "2"]
        assert record["argv"] == [*launch, checkpoint_program.__file__, ",".join(ON_TWO), str(folder)]
        assert (record["restartable"], record["processes"]) == (True, 2)

    def test_exports_sharded_weights_whole(self, two, folder, tmp_path, capsys):
        state = CheckpointStore(folder / "of-two" / "sharded" / "checkpoints").newest_whole()[1]
        target = tmp_path / "model.safetensors"
        assert main(["export", str(folder / "of-two" / "sharded"), "--to", str(target)]) == 0
        assert "4 tensors, 58 numbers" in capsys.readouterr().out
        exported = load_file(target)
        assert [tuple(tensor.shape) for tensor in exported.values()] == [(8,), (8, 4), (2,), (2, 8)]
        assert all(torch.equal(exported[name], state["model"][name]) for name in exported)

    def test_compares_what_each_process_has(self, two, folder, tmp_path, capsys):
        last = CheckpointStore(folder / "of-two" / "exact" / "checkpoints").list()[-1].path
        store = CheckpointStore(tmp_path)
        content = store.load(last, "rank-1.pt")
        content["camshaft"]["seed"] += 1
        store.begin("other")
        files = store.write_file("other", "state.pt", store.load(last, "state.pt"))
        other = store.commit(
            "other", {"iteration": 6, "epoch": 2}, files | store.write_file("other", "rank-1.pt", content)
        )
        assert main(["diff", str(last), str(other)]) == 1
        assert "rank-1/camshaft/seed: 1 in A, 2 in B\n1 of" in capsys.readouterr().out
        assert main(["diff", str(last), str(last)]) == 0


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.distributed
@pytest.mark.slow
class TestSecurity:
    def crafted(self, folder, tmp_path, metadata):
        """A sharded checkpoint whose metadata are exchanged, with digests that are right."""
        run = tmp_path / "run"
        shutil.copytree(folder / "of-two" / "sharded", run)
        store = CheckpointStore(run / "checkpoints")
        path = store.list()[-1].path
        for other in store.list()[:-1]:
            store.delete(other.path)
        (path / "shards" / ".metadata").write_bytes(metadata(path))
        name = path.name
        writing = store.writing(name)
        path.rename(writing)
        saved = json.loads((writing / "metadata.json").read_text())
        files = {file: store.entry_of(name, writing / file)[file] for file in saved["files"]}
        (writing / "metadata.json").unlink()
        store.commit(name, {key: value for key, value in saved.items() if key not in ("sha256", "files")}, files)
        store.verify(path)
        return store, path

    def test_metadata_of_shards_that_would_run_code_are_refused(self, two, folder, tmp_path):
        marker = tmp_path / "marker"
        store, path = self.crafted(folder, tmp_path, lambda path: pickle.dumps(Payload(marker)))
        with pytest.raises(BrokenCheckpointError, match=r"refers to pathlib\.Path\.touch|refers to builtins\.getattr"):
            store.read(path)
        assert not marker.exists()

    def test_shards_of_anything_but_tensors_are_refused_since_torch_would_unpickle_them(self, two, folder, tmp_path):
        def as_bytes(path):
            metadata = pickle.loads((path / "shards" / ".metadata").read_bytes())
            name = next(iter(metadata.state_dict_metadata))
            metadata.state_dict_metadata[name] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()
            return pickle.dumps(metadata)

        store, path = self.crafted(folder, tmp_path, as_bytes)
        with pytest.raises(BrokenCheckpointError, match="BytesStorageMetadata"):
            store.read(path)

    def test_a_shard_that_was_changed_is_noticed(self, two, folder, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(folder / "of-two" / "sharded", run)
        store = CheckpointStore(run / "checkpoints")
        shard = store.list()[-1].path / "shards" / "__1_0.distcp"
        content = bytearray(shard.read_bytes())
        content[-100] ^= 1
        shard.write_bytes(content)
        with pytest.raises(BrokenCheckpointError, match=r"shards/__1_0\.distcp is not what was written"):
            store.read(store.list()[-1].path)


# ------------------------------------------------------------------------------------------------------ real kills

KILLS_ITSELF = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.handlers.checkpoint_program import *

def train(folder, marker):
    initialise()
    seed_everything(1)
    study, more = much(folder)

    def kill(engine):
        if rank() == 1 and engine.state.iteration == 7 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    study.engine.add_event_handler(Events.ITERATION_STARTED, kill)
    study.run(*more)

train(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_of_which_the_launcher_restarts_a_killed_rank_ends_in_the_same_bits(two, folder, tmp_path):
    program, marker = tmp_path / "program.py", tmp_path / "marker"
    program.write_text(KILLS_ITSELF)
    run = tmp_path / "run"
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        line = ["launch", "--nproc-per-node", "2", "--max-restarts", "1", str(program), str(run), str(marker)]
        assert main(line) == 0
    assert marker.exists()
    ended = CheckpointStore(run / "checkpoints").list()[-1].path
    expected = CheckpointStore(folder / "everything" / "whole" / "checkpoints").list()[-1].path
    assert main(["diff", str(expected), str(ended)]) == 0


# --------------------------------------------------------------------------------------------------- one process


def test_a_run_can_begin_with_the_newest_checkpoint_of_another_by_its_directory(tmp_path):
    def run(directory, epochs, **options):
        torch.manual_seed(len(str(directory)))
        model = torch.nn.Linear(1, 1)
        engine = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path / directory, model=model, **options))
        return engine.run([0, 1], max_epochs=epochs).iteration, model.weight.item()

    first = run("first", 3)
    assert run("second", 3, resume=tmp_path / "first")[1] == first[1]
    iteration, weight = run("third", 4, resume=tmp_path / "first")
    assert (iteration, weight) == (8, first[1])
    assert run("third", 5, resume=tmp_path / "first") == (10, first[1])  # now with its own


def test_a_run_without_checkpoints_cannot_be_gone_on_with(tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    engine = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path / "new", resume=tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"The run \S+empty has no checkpoint to go on with"):
        engine.run([0])
