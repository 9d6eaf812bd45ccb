"""The graph of one FLAIR: built, not run."""

from pathlib import Path

import pytest
from nipype.interfaces.base import File, TraitError
from workflow_fakes import make_dataset, make_template, scans_of

from bagau_bids.bids.belongings import Belongings, Given
from bagau_bids.config import Processing, Resources
from bagau_bids.network.cards import Card, Networks, Weights
from bagau_bids.preprocessing.recipe import PREPROCESSING_VERSION
from bagau_bids.workflow.flair import (
    STEPS,
    init_flair_wf,
    scan_steps,
    workflow_name,
)

TEMPLATE = "MNI152NLin2009cSym"


def networks_of(path=Path("w.safetensors"), **card):
    """Weights of the lesions and of the brain, the first with what else its card says."""
    lesions, brain = (
        Card(architecture="x", config={}, sha256=n, **c) for n, c in (("1", card), ("2", {}))
    )
    return Networks((Weights(path, lesions),), Weights(Path("brain.safetensors"), brain))


@pytest.fixture
def build(tmp_path):
    bids_dir = make_dataset(tmp_path / "data", "sub-01_ses-2_run-1")
    template = make_template(tmp_path / "store")
    weights = tmp_path / "w.safetensors"
    weights.touch()
    weights.with_suffix(".json").touch()
    networks = networks_of(weights)
    (scan,) = scans_of(bids_dir)

    def build(processing=None, resources=None, **given):
        return init_flair_wf(
            belongings=Belongings(scan, scan.path.relative_to(bids_dir).as_posix(), **given),
            template=template,
            networks=networks,
            output_dir=tmp_path / "out",
            processing=Processing(**(processing or {})),
            resources=Resources(**{"nprocs": 8, "omp_nthreads": 3} | (resources or {})),
        )

    return build


def nodes_of(workflow):
    """Nodes by the name of their step."""
    return {name: workflow.get_node(name) for name in workflow.list_node_names()}


def test_steps_and_name(build):
    workflow = build()
    assert workflow.name == "sub_01_ses_2_run_1_wf" == workflow_name("sub-01_ses-2_run-1")
    steps = scan_steps(Processing(), networks_of())
    assert set(nodes_of(workflow)) == set(steps)
    assert len(steps) <= 9  # the T1w and the copies are only made on request
    assert [step.ends_scan for step in STEPS] == [*[False] * (len(STEPS) - 1), True]


def test_template_space_adds_one_step(build):
    options = {"output_spaces": ("orig", TEMPLATE)}
    expected = [step.name for step in STEPS if step.name != "t1w"]
    assert set(nodes_of(build(processing=options))) == set(expected)
    assert list(scan_steps(Processing(**options), networks_of())) == expected


def test_t1w_is_a_step_where_there_is_one(build, tmp_path):
    t1w = tmp_path / "sub-01_T1w.nii.gz"
    t1w.touch()
    nodes = nodes_of(build(t1w=Given(t1w, "bids:raw:x", "why")))
    assert (Path(nodes["t1w"].inputs.in_file), nodes["t1w"].inputs.note) == (t1w, "why")


@pytest.mark.parametrize(("inputs", "wanted"), [(None, False), (["flair", "t1"], True)])
def test_card_says_whether_a_t1w_is_wanted(inputs, wanted):
    card = {} if inputs is None else {"inputs": inputs}
    steps = scan_steps(Processing(), networks_of(**card))
    assert ("t1w" in steps) is wanted


def test_space_of_another_template_adds_nothing(build):
    options = {"output_spaces": ("orig", "ICBM152NLin2009aSym")}
    assert "template_copies" not in nodes_of(build(processing=options))


def test_every_mandatory_input_is_set_or_connected(build):
    workflow = build(processing={"output_spaces": ("orig", TEMPLATE)})
    graph = workflow._create_flat_graph()
    for node in graph.nodes():
        connected = {
            target
            for _, _, data in graph.in_edges(node, data=True)
            for _, target in data["connect"]
        }
        for name in node.inputs.traits(mandatory=True):
            assert name in connected or name in node.inputs.get_traitsfree(), f"{node}.{name}"


def test_options_reach_their_steps(build, tmp_path):
    mask = tmp_path / "mask.nii"
    mask.touch()
    nodes = nodes_of(
        build(
            brain_mask=Given(mask, "bids:masks:mask.nii"),
            processing={
                "registration": "paper",
                "random_seed": 5,
                "threshold": 0.3,
                "min_lesion_size_mm3": 9.0,
                "skull_strip": "skip",
            },
            resources={"device": "cuda:1", "batch_size": 2, "low_mem": True},
        )
    )
    assert Path(nodes["brain_mask"].inputs.mask_file) == mask
    assert nodes["brain_mask"].inputs.skull_strip == "skip"
    assert nodes["prepare"].inputs.brain_mask_uri == "bids:masks:mask.nii"
    assert nodes["brain_mask"].inputs.network == "2"
    assert nodes["registration"].inputs.method == "paper"
    assert nodes["registration"].inputs.seed == 5
    assert nodes["measure"].inputs.threshold == 0.3
    assert nodes["measure"].inputs.min_lesion_size_mm3 == 9.0
    assert nodes["segmentation"].inputs.device == "cuda:1"
    assert nodes["segmentation"].inputs.batch_size == 2
    assert nodes["segmentation"].is_gpu_node()
    assert nodes["conform"].inputs.compress is False
    assert nodes["prepare"].inputs.options["threshold"] == 0.3


def test_sloppy_chooses_the_quick_registration(build):
    assert nodes_of(build(processing={"sloppy": True}))["registration"].inputs.method == "sloppy"


@pytest.mark.parametrize(("nprocs", "threads"), [(8, 3), (2, 2)])
def test_threads_stay_within_the_total(build, nprocs, threads):
    nodes = nodes_of(build(resources={"nprocs": nprocs}))
    assert nodes["segmentation"].n_procs == threads
    assert nodes["segmentation"].inputs.num_threads == threads
    assert nodes["registration"].inputs.num_threads == threads
    for name in ("registration", "bias_field"):  # no result depends on the number
        assert nodes[name].n_procs == 1
    assert nodes["bias_field"].inputs.num_threads == 1
    assert nodes["measure"].n_procs == 1


@pytest.mark.parametrize(
    "name", ["conform", "brain_mask", "bias_field", "registration", "t1w", "segmentation"]
)
def test_another_version_of_the_recipe_makes_a_step_run_again(build, tmp_path, name):
    t1w = tmp_path / "sub-01_T1w.nii.gz"
    t1w.touch()
    inputs = nodes_of(build(t1w=Given(t1w, "bids:raw:x")))[name].inputs
    assert inputs.recipe == PREPROCESSING_VERSION
    before = inputs.get_hashval()
    inputs.recipe = "next"
    assert inputs.get_hashval() != before


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_no_step_takes_a_file_that_is_not_there(step, tmp_path):
    inputs = step.input_spec()
    kinds = {name: inputs.trait(name) for name in inputs.copyable_trait_names()}
    files = [
        name
        for name, kind in kinds.items()
        if any(isinstance(one.trait_type, File) for one in (kind, *kind.inner_traits))
    ]
    assert files or step.name == "put_out"  # which takes a tree of them
    for name in files:
        with pytest.raises(TraitError):
            setattr(inputs, name, tmp_path / "absent.nii.gz")
