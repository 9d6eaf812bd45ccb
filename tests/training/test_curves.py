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
    assert Image.open(tmp_path / "curves.png").size == (1200, 480)
