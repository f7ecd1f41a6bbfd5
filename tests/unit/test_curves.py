import html
import math
import re
import subprocess
import sys

import pytest

from rlhf.__main__ import main
from rlhf.curves import MOST_POINTS, curves_page, read_runs, run_names, write_curves
from rlhf.errors import ConfigError, DataError
from tests.events import write_events

FALLING = [(10, 0.7), (20, 0.5), (30, 0.25)]
RISING = [(1, -1.0), (2, 0.5), (3, 2.0)]
RATE = [(1, 0.5), (3, 0.25)]


def write_run(folder, scale: float = 1.0):
    """What a whole run of the pipeline leaves: `learning_rate` in each of its stages."""
    scaled = [(step, scale * value) for step, value in RISING]
    write_events(folder / "reward-trainer/tensorboard", {"rank_loss": FALLING, "learning_rate": RATE})
    write_events(folder / "ppo-trainer/tensorboard", {"reward": scaled, "ppo/kl": RISING, "learning_rate": RATE})
    return str(folder)


def rendered(*runs: str) -> str:
    return curves_page(read_runs(runs)).render()


def sections(page: str) -> dict[str, str]:
    """{heading: what stands under it}."""
    parts = re.split(r"<h2[^>]*>(.*?)</h2>", page)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def captions(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page)]


def legend(figure: str) -> list[str]:
    """Texts of a figure that are no numbers."""
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", figure) if not re.search(r"^−?\d", text)]


def test_runs_are_laid_over_each_other_tag_by_tag(tmp_path):
    page = sections(rendered(write_run(tmp_path / "old"), write_run(tmp_path / "new")))
    assert list(page) == ["Runs", "Reward model", "Reinforcement learning"]
    assert captions(page["Reward model"]) == [
        "rank_loss: old from 0.7 to 0.25; new from 0.7 to 0.25.",
        "learning_rate: old from 0.5 to 0.25; new from 0.5 to 0.25.",
    ]
    assert [text.split(":")[0] for text in captions(page["Reinforcement learning"])] == [
        "reward",
        "learning_rate",
        "ppo/kl",
    ]
    first = page["Reward model"].split("</svg>")[0]
    assert [text for text in legend(first) if text in ("old", "new")] == ["old", "new"]


def test_the_vertex_pipelines_tensors_and_our_trainers_scalars_meet(tmp_path):
    write_events(tmp_path / "vertex/train", {"reward": RISING, "kl_loss": RISING}, as_tensors=True)
    ours = write_run(tmp_path / "ours")
    found = captions(sections(rendered(str(tmp_path / "vertex"), ours))["Reinforcement learning"])
    assert found[0] == "reward: vertex from −1 to 2; ours from −1 to 2."


def test_what_our_tracker_writes_is_drawn(tmp_path):
    from rlhf.tracking import Tracker

    tracker = Tracker(tmp_path / "run/tensorboard")
    tracker.scalars(1, {"rank_loss": 0.5})
    tracker.scalars(2, {"rank_loss": 0.25})
    tracker.close()
    assert captions(rendered(str(tmp_path / "run"))) == ["rank_loss: from 0.5 to 0.25."]


def test_what_one_run_alone_logged_is_folded_away(tmp_path):
    write_events(tmp_path / "vertex", {"reward": RISING, "kl_loss": RISING})
    page = sections(rendered(str(tmp_path / "vertex"), write_run(tmp_path / "ours")))
    shown, folded = page["Reinforcement learning"].split("<details>")
    assert [text.split(":")[0] for text in captions(shown)] == ["reward"]
    assert "3 more that one run alone logged" in folded
    assert captions(folded)[0] == "kl_loss: vertex from −1 to 2."


def test_a_run_keeps_its_colour_where_another_lacks_the_tag(tmp_path):
    write_events(tmp_path / "a", {"reward": RISING, "kl_loss": RISING})
    write_events(tmp_path / "b", {"reward": RISING})
    both, alone = (f for f in rendered(str(tmp_path / "a"), str(tmp_path / "b")).split("<figure>")[1:])
    assert set(re.findall(r"--s\d", both)) == {"--s1", "--s2"}
    assert set(re.findall(r"--s\d", alone)) == {"--s1"}
    assert "b" not in legend(alone)


def test_stages_that_one_run_alone_went_through_come_last(tmp_path):
    write_events(tmp_path / "new/sft", {"sft/loss": FALLING})
    page = sections(rendered(write_run(tmp_path / "old"), write_run(tmp_path / "new")))
    assert list(page) == ["Runs", "Reward model", "Reinforcement learning", "Supervised fine-tuning"]


def test_runs_of_very_different_lengths_meet_by_their_share_of_the_way(tmp_path):
    write_events(tmp_path / "short", {"reward": [(1, 0.0), (10, 1.0)]})
    write_events(tmp_path / "long", {"reward": [(10, 0.0), (1000, 1.0)]})
    page = rendered(str(tmp_path / "short"), str(tmp_path / "long"))
    assert "took very different numbers of steps (short 10, long 1,000)" in page
    assert "% of the run&#39;s steps" in page


def test_values_of_very_different_size_are_drawn_apart(tmp_path):
    runs = write_run(tmp_path / "small"), write_run(tmp_path / "large", scale=1e4)
    found = captions(sections(rendered(*runs))["Reinforcement learning"])
    apart = "Drawn apart: the runs' values are of very different size."
    assert found[:2] == [f"reward: small from −1 to 2. {apart}", f"reward: large from −10,000 to 20,000. {apart}"]


def test_parts_of_one_stage_in_one_run_are_told_apart(tmp_path):
    for name in ("low", "high"):
        write_events(tmp_path / "sweep" / name, {"reward": RISING})
    assert captions(rendered(str(tmp_path / "sweep"))) == [
        "reward: sweep/high from −1 to 2; sweep/low from −1 to 2.",
    ]


def test_a_run_that_was_started_again_counts_each_step_once(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,tag,value\n1,reward,1\n2,reward,9\n2,reward,2\n3,reward,3\n")
    (found,) = read_runs([str(path)])
    assert found.scalars == {"reward": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_long_curves_are_averaged_into_fewer_points(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,tag,value\n" + "".join(f"{i},reward,{i % 2}\n" for i in range(10_000)) + "10000,reward,nan\n")
    (found,) = read_runs([str(path)])
    points = found.scalars["reward"]
    assert len(points) <= MOST_POINTS
    assert points[-1][0] == 10_000
    assert all(0.4 < value < 0.6 for _, value in points[:-1])
    assert points[-1][1] == 1.0, "what is not finite counts for nothing"


def test_values_that_are_not_finite_leave_gaps(tmp_path):
    write_events(tmp_path / "run", {"reward": [(1, 1.0), (2, math.nan), (3, math.inf)], "kl_loss": [(1, math.nan)]})
    assert captions(rendered(str(tmp_path / "run"))) == ["reward: from 1 to not known.", "kl_loss: at not known."]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/run1", "/a/run2"], ["run1", "run2"]),
        (["/a/run/tensorboard", "/b/run/tensorboard/"], ["a/run", "b/run"]),
        (["/a/x/ppo", "/b/x/ppo"], ["a/x/ppo", "b/x/ppo"]),
        (["/a/reward.scalars.csv", "/a/ppo.csv"], ["reward", "ppo"]),
        (["/a/run", "/a/run/tensorboard"], ["run", "tensorboard"]),
        (["gs://bucket/a/run", "gs://user:secret@bucket/b/run"], ["a/run", "b/run"]),
    ],
)
def test_runs_are_named_by_as_much_of_their_paths_as_it_takes(paths, names):
    assert run_names(paths) == names


def test_long_names_are_cut_in_the_middle_and_stay_apart(tmp_path):
    names = [f"a-very-long-name-of-a-run-{letter}-of-this-very-long-sweep" for letter in "abc"]
    for name in names:
        write_events(tmp_path / name, {"reward": RISING})
    (caption,) = captions(rendered(*(str(tmp_path / name) for name in names)))
    assert caption.count("from −1 to 2") == 3
    assert "1: a-very" in caption
    assert "3: a-very" in caption


def test_runs_at_a_uri(tmp_path):
    import fsspec

    write_events(tmp_path / "run/deep", {"reward": RISING})
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "run"), "/curves/run", recursive=True)
    store.pipe("/curves/other.csv", b"step,tag,value\n1,reward,1\n")
    try:
        found = read_runs(["memory://curves/run", "memory://curves/other.csv"])
    finally:
        store.rm("/curves", recursive=True)
    assert [(part.run, part.part, list(part.scalars)) for part in found] == [
        ("run", "deep", ["reward"]),
        ("other", "", ["reward"]),
    ]


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path):
    write_events(tmp_path / "a", {"reward": RISING})
    write_events(tmp_path / "b", {"rank_loss": FALLING})
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/events.out.tfevents.1").write_bytes(b"")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for runs, kind, said in [
        ([str(tmp_path / "none")], DataError, "no such folder"),
        ([str(tmp_path / "empty")], DataError, "no event files"),
        ([str(tmp_path / "nothing")], DataError, "no scalars"),
        ([a, b], DataError, "no two of them logged the same tag.*: a has reward, ...; b has rank_loss"),
        ([a, a], ConfigError, "more than once"),
        ([a, str(tmp_path / "b/../a")], ConfigError, "more than once"),
        ([f"{a}{i}" for i in range(6)], ConfigError, "found 6, expected 1 to 5"),
        (["nowhere://a"], ConfigError, "nowhere"),
        (["memory://curves/none"], DataError, "no event files"),
    ]:
        with pytest.raises(kind, match=said):
            read_runs(runs)


def test_more_parts_of_a_stage_than_colours_are_refused(tmp_path):
    for number in range(6):
        write_events(tmp_path / "sweep" / str(number), {"reward": RISING})
    with pytest.raises(ConfigError, match=r"found 6 of the stage 'reinforcement learning'.*at most 5"):
        rendered(str(tmp_path / "sweep"))


def test_names_and_tags_are_shown_as_text(tmp_path):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    write_events(run, {"<script>alert(1)</script>\u202e": RISING, "_x": RISING})
    page = rendered(str(run))
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page


def test_names_that_begin_with_an_underscore_stand_in_the_legend(tmp_path):
    for name in ("_a", "a"):
        write_events(tmp_path / name, {"reward": RISING})
    figure = rendered(str(tmp_path / "_a"), str(tmp_path / "a")).split("<figure>")[1]
    assert {"run _a", "a"} <= set(legend(figure))


def test_a_real_vertex_run_beside_our_own(real_data, tmp_path):
    folder = real_data / "tensorboard"
    vertex = [str(folder / f"vertex_llama2_7b_{name}.scalars.csv") for name in ("reward", "reinforcer")]
    page = sections(rendered(*vertex, write_run(tmp_path / "ours")))
    assert [name for name in page if name != "Runs"] == ["Reward model", "Reinforcement learning"]
    assert captions(page["Reward model"])[0].startswith("rank_loss: vertex_llama2_7b_reward from 0.")
    assert captions(page["Reinforcement learning"])[0].endswith("ours from −1 to 2.")


def test_the_command_writes_the_page(tmp_path, capsys):
    out = tmp_path / "pages/curves.html"
    main(["curves", write_run(tmp_path / "run"), "--out", str(out)])
    assert "<title>Training curves</title>" in out.read_text()
    assert capsys.readouterr().out == f"[curves] wrote {out}\n"


def test_the_command_ends_with_one_line_where_it_cannot(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["curves", str(tmp_path / "none")])
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith("[curves] error: ")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*cannot be written"):
        write_curves([write_run(tmp_path / "run")], tmp_path / "file/curves.html")


def test_the_command_knows_itself_without_loading_a_stage():
    code = (
        "import rlhf.__main__, sys; assert not {'torch', 'numpy', 'matplotlib'} & {*sys.modules}; rlhf.__main__.main()"
    )
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "curves" in shown.stdout
