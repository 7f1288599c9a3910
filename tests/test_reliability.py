"""What users complain of elsewhere, and what a run has to survive: product.md's rows at CI sizes.

The long ones are benchmarks/studies/reliability.py's.
"""

import ast
import random
from collections import Counter
from pathlib import Path

import hostile
import pytest
import reliability

HERE = Path(__file__).parent

# A complaint about others: the tests that would fail if it applied here.
COMPLAINTS = {
    "no way to save or restore in pure-JAX RL": [
        "checkpoint: test_a_restored_run_goes_on_with_the_same_bits",
        "resume: test_a_phase_goes_on_with_the_same_bits",
    ],
    "resume loses optimizer state, return dips": [
        "checkpoint: test_the_newest_two_and_the_best_are_kept_and_come_back",
        "resume: test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits",
    ],
    "normaliser statistics forgotten": ["policies: test_saved_and_loaded"],
    "exported model differs: preprocessing left out": ["policies: test_saved_and_loaded"],
    "teacher/student space mismatch is cryptic": ["cli: test_errors_are_one_line_with_a_code"],
    "minibatch divisibility assert": ["errors: test_mistake"],
    "compile takes minutes": ["results: test_compile_seconds"],
    "logging recompiles or dominates": ["learner: test_changed_numbers_trace_once"],
    "silent fall-back to CPU": ["cli: test_errors_are_one_line_with_a_code"],
    "same seed, different results": ["cli: test_the_same_seeds_find_the_same"],
    'a distillation that was a no-op and "worked"': [
        "learner: test_a_term_of_weight_zero_is_plain_ppo",
        "learner: test_permuting_the_teachers_logits_changes_the_student",
    ],
    "pickle executes code on load": ["structure: test_nothing_executes_data"],
    "dataset grows without bound": ["memory: test_the_aggregate_bit_for_bit"],
}

# A row of product.md: its tests at the size of every commit.
ROWS = {
    "R1": ["resume: test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits"],
    "R2": ["resume: test_a_signal_is_answered_with_75_from_the_first_millisecond"],
    "R3": [
        "resume: test_a_full_disk_ends_with_4_and_a_run_that_goes_on",
        "checkpoint: test_a_full_disk_leaves_the_one_before",
        "policies: test_a_full_disk_keeps_the_old_policy",
    ],
    "R4": ["reliability: test_damaged_files_are_refused_or_passed_over"],
    "R5": [
        "reliability: test_malformed_input_is_refused_in_a_line",
        "reliability: test_malformed_commands_are_refused_in_a_line",
    ],
    "R6": ["structure: test_nothing_executes_data", "policies: test_damage_is_one_line"],
    "R7": [
        "cli: test_the_same_seeds_find_the_same",
        "learner: test_a_seed_is_the_same_among_many",
        "run: test_lanes_in_groups_are_the_same_lanes",
    ],
    "R8": [
        "sharding: test_every_mesh_gives_the_numbers_of_one_device",
        "sharding: test_two_processes_give_the_numbers_of_one",
    ],
    "R9": ["reliability: test_eight_devices_write_what_four_and_one_read"],
    "R10": ["reliability: test_a_nan_in_one_seed_is_named_and_harms_no_other"],
    "R11": ["learner: test_changed_numbers_trace_once", "results: test_compile_seconds"],
    "R12": [
        "modes: test_every_component_in_every_mode",
        "structure: test_warnings_from_jaxkd_are_errors",
    ],
    "R13": ["losses: test_divergences_as_scipy_and_rlax_and_distrax"],
    "R14": ["results: test_figures_belong_to_these_settings_and_reach_their_gates"],
}


def defined_in(name: str) -> set[str]:
    tree = ast.parse((HERE / f"test_{name}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("what", [*COMPLAINTS, *ROWS])
def test_each_complaint_and_row_has_a_test(what):
    for named in (COMPLAINTS | ROWS)[what]:
        file, test = named.split(": ")
        assert test in defined_in(file), named


# --- R4, R5, R10 --------------------------------------------------------------------------------


def sound(ends: Counter, row: str = "nans", wanted: int = 1) -> bool:
    size = reliability.SIZES["full"]._replace(**{row: wanted})
    return not reliability.gate({row: {"ends": ends}}, size)


def test_the_gate_can_fail():
    assert not sound(Counter({"silent: cut of x": 1}))
    assert not sound(Counter({"refused": 9, "bad: slow": 1}))
    assert not sound(Counter({"refused": 9}), wanted=10)
    assert sound(Counter({"refused": 9, "silent": 0}), wanted=9)
    kills = Counter(update=2, file=4, save=1, restore=1, resumed=1)
    assert sound(kills, "kills", 8) and not sound(kills, "kills", 9)


def test_what_is_silent_or_bad_is_found_out(tmp_path, monkeypatch):
    """Without its digest a card that changed is believed, and said to be silent."""
    made = hostile.begun(tmp_path / "begun")
    found = Counter(hostile.damage(made, random.Random(i), tmp_path) for i in range(12))
    assert sound(found) and found["refused"] + found["warned"]
    monkeypatch.setattr(hostile.card, "read", lambda path: {})
    monkeypatch.setattr(hostile.card, "summary", lambda *_: {})
    monkeypatch.setattr(hostile.Checkpoints, "restore", lambda *_: 1 / 0)
    blind = Counter(hostile.damage(made, random.Random(i), tmp_path) for i in range(12))
    assert not sound(blind)
    assert hostile.answered(["x"], 1, "Traceback").startswith("bad")
    assert hostile.answered(["x"], 2, "error: a\nand more\n").startswith("bad")
    assert hostile.answered(["x"], 2, "error: a\n") == "refused"


def test_a_study_that_was_cut_goes_on():
    first = reliability.Tally()
    first.add(Counter(["refused"]))
    kept = first.result()
    again = reliability.Tally(kept)
    again.add(Counter(["same"]))
    assert (again.tried, again.ends) == (2, {"refused": 1, "same": 1})
    assert again.result()["seconds"] >= kept["seconds"] >= 0


@pytest.mark.slow
def test_damaged_files_are_refused_or_passed_over():
    ends = reliability.tried("damage", 300).ends
    assert sound(ends), ends
    assert ends["refused"] > 50 and ends["warned"] > 50


@pytest.mark.slow
def test_malformed_input_is_refused_in_a_line():
    ends = reliability.tried("malformed", 200).ends
    assert sound(ends), ends
    assert ends["refused"] > 150


@pytest.mark.slow
def test_malformed_commands_are_refused_in_a_line():
    ends = reliability.tried("commands", 20).ends
    assert ends == {"refused": 20}


@pytest.mark.slow
@pytest.mark.bits
def test_a_nan_in_one_seed_is_named_and_harms_no_other():
    ends = reliability.tried("nans", 6).ends
    assert ends == {"named, others the same": 6}


EIGHT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import jaxkd
env = jaxkd.envs.make("CartPole-v1", 8)
ppo = jaxkd.lanes(jaxkd.ppo(env, jaxkd.networks.mlp(env, (4,)), unroll_length=4))
wide = jaxkd.sharding.shard(ppo, jaxkd.sharding.mesh(seeds=int(sys.argv[1])))
keys = jaxkd.seeds(0, 8)
like = jax.jit(wide.init)(keys)
if sys.argv[3] == "write":
    like, _ = jaxkd.run(wide, keys, 2)
    jaxkd.save(like, sys.argv[2], 2)
else:
    like = jaxkd.restore(sys.argv[2], like)
print(len(like.params["params"]["actor"]["Dense_0"]["bias"].sharding.device_set))
print(jaxkd.checkpoint_card.entry("all", jax.numpy.concatenate([
    jax.numpy.ravel(x).astype(float) for x in jax.device_get(jax.tree.leaves(like.params))]))[-1])
"""


@pytest.mark.slow
def test_eight_devices_write_what_four_and_one_read(tmp_path):
    import subprocess
    import sys

    found = []
    for devices, what in (("8", "write"), ("4", "read"), ("1", "read")):
        asked = [sys.executable, "-c", EIGHT, devices, str(tmp_path / "run"), what]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        number, sha = done.stdout.split()
        assert number == devices
        found.append(sha)
    assert len(set(found)) == 1


def test_what_takes_too_long_is_named():
    """Of benchmarks/speed/overheads.py."""
    import overheads

    rounds = [{"checkpoints": 11}]
    fast = {
        "rounds": rounds,
        "shares": {"wall": 0.01},
        "starts": {"help": 0.3, "second start": 5.0},
    }
    assert overheads.gate(fast) == []
    slow = {"rounds": [{"checkpoints": 9}], "shares": {"wall": 0.03}}
    assert len(overheads.gate(slow | {"starts": {"help": 0.5, "second start": 7.0}})) == 4
