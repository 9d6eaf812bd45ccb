"""The picture of a training shows what its tables say."""

import numpy as np
from PIL import Image

from bagau_bids.training.curves import draw_curves, save_curves


def write_tables(folder, *, validated):
    rows = [f"{step},{2 / step},{1e-3},0.5" for step in range(20, 200, 20)]
    (folder / "training.csv").write_text(
        "\n".join(["step,loss,learning_rate,seconds_per_step", *rows])
    )
    if validated:
        (folder / "validation.csv").write_text(
            "step,scan,dice\n100,sub-a,0.5\n100,sub-b,0.7\n180,sub-a,0.6\n180,sub-b,0.9\n"
        )


def test_every_scan_and_their_mean_are_drawn(tmp_path):
    write_tables(tmp_path, validated=True)
    lines = {line.get_label(): line for line in draw_curves(tmp_path).axes[1].lines}
    np.testing.assert_allclose(lines["sub-b"].get_xydata(), [[100, 0.7], [180, 0.9]])
    np.testing.assert_allclose(lines["mean"].get_xydata(), [[100, 0.6], [180, 0.75]])


def test_a_training_not_validated_yet_has_a_picture_too(tmp_path):
    write_tables(tmp_path, validated=False)
    save_curves(tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["curves.png"]
    assert Image.open(tmp_path / "curves.png").size == (1440, 480)


def test_infarcts_have_curves_and_heads_without_lesions_none(tmp_path):
    write_tables(tmp_path, validated=False)
    (tmp_path / "validation.csv").write_text(
        "step,scan,dice,infarct_called_wmh,infarct_dice\n"
        "100,sub-a,0.5,nan,nan\n100,healthy-00,nan,nan,nan\n100,infarcts,nan,0.05,0.4\n"
        "180,sub-a,0.7,nan,nan\n180,healthy-00,nan,nan,nan\n180,infarcts,nan,0.03,0.5\n"
    )
    lines = {line.get_label(): line for line in draw_curves(tmp_path).axes[1].lines}
    assert set(lines) == {"sub-a", "mean", "infarct Dice", "infarct called WMH"}
    np.testing.assert_allclose(lines["infarct Dice"].get_xydata(), [[100, 0.4], [180, 0.5]])
    np.testing.assert_allclose(lines["infarct called WMH"].get_ydata(), [0.05, 0.03])
    np.testing.assert_allclose(lines["mean"].get_ydata(), [0.5, 0.7])
