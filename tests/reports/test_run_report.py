"""report.html of synthetic runs: its content, its escaping, and how a browser shows it."""

import html.parser
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from poise_jax.reports import run, svg

ROOT = pathlib.Path(__file__).parents[2]
NASTY = "<script>alert('x')</script></div>\"&amp; \x1b[31m\x00\ud800 \u202e</style>"
VOID = {"meta", "link"}


def write_run(folder, steps=30, total=40, kind="probe", tokens=True):
  """A run whose reward grows with the step. The last token of every answer has no text."""
  folder.mkdir(parents=True, exist_ok=True)
  config = dict(algorithm="poise", seed=3, steps=total, rollouts=4, log_samples=1)
  config |= dict(model=dict(source=""), rollout=dict(n=2))
  (folder / "config.json").write_text(json.dumps(config))
  metrics, samples = [], []
  for step in range(steps + 1):
    row = {"step": step}
    if step % 10 == 0:
      row |= {"eval/accuracy": 0.2 + step / 100, "eval/accuracy_se": 0.02}
      row |= {"eval/accuracy/easy": 0.5, "eval/accuracy/h<a>rd": step / 100}
    if step:
      row |= {"reward/mean": step / 100, "reward/mean/easy": 0.4, "reward/mean/h<a>rd": 0.1}
      row |= {"policy/entropy": 1 / step, "policy/grad_norm": 3 + math.sin(step)}
      row |= {"rollout/length": 5.0, "rollout/truncated_fraction": 0.0, "collect/tokens": 20}
      row |= {f"time/{part}": 0.5 for part in ("rollout", "reward", "estimate", "update")}
      row |= {"time/step": 2.0 if step > 1 else 60.0}
      row["time/update"] += 58 * (step == 1)
      if kind == "probe":
        row |= {"probe/active": 1.0, "probe/pearson": 0.2, "probe/mae": 0.3, "probe/ceiling": 0.6}
        row |= {
          "probe/variance_reduction": step / 100 - 0.1,
          "baseline/mean/easy": 0.3 + step / 100,
        }
        row |= {"baseline/mean/h<a>rd": 0.2}
      elif kind == "critic":
        row |= {"critic/explained_variance": 0.4}
      for i in range(2):
        sample = dict(step=step, question=NASTY, answer="4", difficulty="h<a>rd", response=NASTY)
        sample |= dict(reward=float(i), baseline=0.25 + 0.5 * i, advantage=0.75 * i - 0.25)
        if tokens:
          sample |= dict(tokens=[NASTY, "a\nb", ""], entropies=[0.0, 1.0, 2.0])
        samples.append(sample)
    metrics.append({**row, "time/elapsed": 10.0 * (step + 1)})
  for name, written in (("metrics", metrics), ("samples", samples)):
    text = "".join(json.dumps(row) + "\n" for row in written)
    (folder / f"{name}.jsonl").write_text(text)
  return folder


class Page(html.parser.HTMLParser):
  """Tags, text and external resources of a page; asserts that every tag is closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.titles, self.text, self.loads = [], [], [], "", []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]
    assert not any(k.startswith("on") for k, _ in attributes)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == "h3":
      self.titles.append(data)
    if "style" not in self.open:
      self.text += data


def page_of(folder):
  text = run.write(folder).read_text(encoding="utf-8")
  page = Page(text)
  assert "script" not in page.tags and page.loads == ["data:,"]
  assert not re.search(r"@import|url\(|https?://", text)
  return text, page


def test_a_page_shows_every_figure_and_loads_nothing(tmp_path):
  text, page = page_of(write_run(tmp_path / "a"))
  assert page.titles == [
    "Reward",
    "Held-out accuracy (greedy)",
    "Reward by difficulty",
    "Held-out accuracy by difficulty",
    "Policy entropy (nats per token)",
    "Gradient norm",
    "Response length (tokens)",
    "Truncated responses (fraction)",
    "Time per step (seconds)",
    "Calibration of the baseline",
    "Probe: agreement with the sibling's reward",
    "Probe: mean absolute error",
    "Variance removed by the baseline",
    "Predicted value and reward by difficulty",
    "Predicted value and reward by response length",
  ]
  assert page.tags.count("svg") == len(page.titles)
  assert "at step 30 of 40" in page.text and "0.200 → 0.500" in page.text
  assert "reward, last 10 steps" in page.text and "0.255" in page.text
  assert "120rollouts sampled" in page.text and "600tokens generated" in page.text
  assert "step 10: 0.3" in text  # tooltip of a point of the accuracy
  assert "the longest step took 60.0 s" in page.text


def test_other_algorithms_have_their_own_panels(tmp_path):
  _, critic = page_of(write_run(tmp_path / "critic", kind="critic"))
  assert "Critic: explained variance" in critic.titles
  _, group = page_of(write_run(tmp_path / "group", kind=""))
  assert not any(title.startswith(("Probe", "Critic")) for title in group.titles)


def test_sampled_evaluations_have_their_own_figures(tmp_path):
  folder = write_run(tmp_path / "a")
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  for row in rows[::10]:
    row |= {f"eval/{name}": 0.25 for name in ("avg_at_8", "avg_at_8_se", "pass_at_4", "pass_at_8")}
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  _, page = page_of(folder)
  assert page.titles[4:6] == [
    "Held-out avg@n (sampled)",
    "Held-out pass@k (sampled)",
  ]
  assert "avg_at_8" in page.text and "pass_at_4pass_at_8" in page.text and "_se" not in page.text


def test_parts_of_a_weighted_reward(tmp_path):
  folder = write_run(tmp_path / "a")
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  for row in rows[1:]:
    row |= {"reward/part/<format>": 0.5, "reward/part/math": 0.25}
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  text, page = page_of(folder)
  assert page.titles[3] == "Parts of the reward"
  assert "<format>math" in page.text and "&lt;format&gt;, step 1: 0.5" in text


def test_answers_are_shown_literally_and_never_executed(tmp_path):
  text, page = page_of(write_run(tmp_path / "a"))
  assert "<script>alert('x')</script></div>\"&amp; ␛[31m␀\\ud800 \u202e</style>" in page.text
  assert "h<a>rd · answer 4" in page.text and "↵\n" in page.text
  assert '<span class="h0" title="0.00 nats">&lt;script&gt;' in text
  assert '<span class="h6" title="1.00 nats">a↵\nb</span>' in text
  assert '<span class="h11" title="2.00 nats">∎</span>' in text
  # First and last step with answers, and some between them.
  steps = [int(n) for n in re.findall(r"<summary>step (\d+): 2 answers, mean reward 0.50", text)]
  assert len(steps) == run.STEPS_SHOWN and steps[0] == 1 and steps[-1] == 30
  assert "default-src 'none'" in text


def test_calibration_of_the_baseline(tmp_path):
  text, page = page_of(write_run(tmp_path / "a"))
  assert "60 answers in samples.jsonl, steps 1 to 30" in page.text
  assert re.findall(r"<title>(\d+ answers: [^<]*)</title>", text) == [
    "30 answers: baseline 0.250, reward 0.000 ± 0.000",
    "30 answers: baseline 0.750, reward 1.000 ± 0.000",
  ]


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_just_begun(tmp_path, steps):
  _, page = page_of(write_run(tmp_path / "a", steps=steps))
  assert f"at step {steps} of 40" in page.text
  assert ("Reward" in page.titles) == bool(steps)
  assert not re.search(r"\bnan\b", page.text)


def test_incomplete_files_and_runs_of_older_versions(tmp_path):
  folder = write_run(tmp_path / "a", tokens=False)
  (folder / "metrics.jsonl").open("a").write('{"step": 31, "rew')
  (folder / "samples.jsonl").open("a").write('{"step": 31, "que')
  _, page = page_of(folder)
  assert "at step 30 of 40" in page.text and "<script>alert" in page.text
  for name in ("metrics", "samples"):
    (folder / f"{name}.jsonl").unlink()
  _, page = page_of(folder)
  assert page.titles == [] and "at step 0 of 40" in page.text


def test_the_size_of_a_page_is_bounded(tmp_path):
  folder = write_run(tmp_path / "a", steps=3000, total=3000)
  long = json.loads((folder / "samples.jsonl").read_text().splitlines()[-1])
  long |= dict(step=3000, tokens=["word "] * 5000, entropies=[0.5] * 5000)
  with (folder / "samples.jsonl").open("a") as file:
    file.write("".join(json.dumps(long) + "\n" for _ in range(100)))
  text, page = page_of(folder)
  assert "finished" in page.text and "4,600 more tokens" in page.text
  assert len(text) < 900_000


def test_the_page_is_replaced_in_one_go(tmp_path, monkeypatch):
  folder = write_run(tmp_path / "a")
  before = run.write(folder).read_text(encoding="utf-8")

  def stop(source, target):
    assert pathlib.Path(source).stat().st_size > 10_000 and target == folder / "report.html"
    assert target.read_text(encoding="utf-8") == before
    raise OSError("stopped")

  monkeypatch.setattr(os, "replace", stop)
  with pytest.raises(OSError, match="stopped"):
    run.write(folder)
  assert (folder / "report.html").read_text(encoding="utf-8") == before


def test_the_command_writes_the_page_again(tmp_path):
  command = [sys.executable, "-m", "experiments.report"]
  folder = write_run(tmp_path / "a")
  done = subprocess.run(
    [*command, f"--workdir={folder}"], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout == f"{folder}/report.html\n" and (folder / "report.html").exists()
  done = subprocess.run(
    [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path} holds no run")
  (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
  with pytest.raises(ValueError, match="names no algorithm"):
    run.write(tmp_path)


MEASURE = """<script>
const page = {wide: document.documentElement.scrollWidth, room: innerWidth, figures: []};
for (const svg of document.querySelectorAll('.card svg')) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
  const over = (a, b) => a.left < b.right && b.left < a.right
    && a.top < b.bottom && b.top < a.bottom;
  page.figures.push({
    name: svg.getAttribute('aria-label'), width: frame.width, height: frame.height,
    texts: texts.length, size: Math.min(...texts.map(t => t.height)),
    colored: [...svg.querySelectorAll('path,circle')].some(
      p => /rgb\\((?!0, 0, 0)/.test(getComputedStyle(p).stroke + getComputedStyle(p).fill)),
    outside: texts.filter(t => t.left < frame.left - 1 || t.right > frame.right + 1
      || t.top < frame.top - 1 || t.bottom > frame.bottom + 1).length,
    overlaps: texts.filter((t, i) => texts.some((u, j) => i < j && over(t, u))).length,
  });
}
document.body.textContent = 'MEASURED' + JSON.stringify(page) + 'END';
</script>"""


def browse(path, profile, width):
  """The DOM of a page in Chromium, and the messages on its console."""
  command = [
    *(shutil.which("chromium") or shutil.which("google-chrome"), "--headless", "--no-sandbox"),
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    *(f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom", f"file://{path}"),
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
  return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(
  not (shutil.which("chromium") or shutil.which("google-chrome")),
  reason="Chromium is not installed (apt-get install chromium)",
)


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_figures_are_legible_in_a_browser(tmp_path, width):
  path = run.write(write_run(tmp_path / "a"))
  text = path.read_text(encoding="utf-8")
  assert browse(path, tmp_path / "profile", width)[1] == []  # no error, nothing blocked
  measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
  (tmp_path / "measured.html").write_text(measured.replace("</body>", f"{MEASURE}</body>"))
  dom, messages = browse(tmp_path / "measured.html", tmp_path / "profile", width)
  assert messages == []
  measured = json.loads(re.search(r"MEASURED(.*)END", dom)[1])
  assert measured["wide"] <= measured["room"]  # no horizontal scrolling
  assert len(measured["figures"]) == 15
  for figure in measured["figures"]:
    assert figure["width"] > 300 and figure["height"] > 150 and figure["colored"], figure
    assert figure["texts"] >= 6 and figure["size"] > 8, figure
    assert not figure["outside"] and not figure["overlaps"], figure


@needs_browser
def test_the_browser_blocks_injected_scripts(tmp_path):
  path = run.write(write_run(tmp_path / "a"))
  text = path.read_text(encoding="utf-8")
  path.write_text(text.replace("</body>", "<script>document.body.textContent = 1</script></body>"))
  dom, messages = browse(path, tmp_path / "profile", 800)
  assert "Calibration of the baseline" in dom and "script" in messages[0]


def test_ticks_are_round_and_within_the_axis():
  def texts(*arguments, **options):
    return [text for _, text in svg.ticks(*arguments, **options)]

  assert texts(0, 1, 5) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
  assert texts(-0.8, 0.1, 4) == ["−0.75", "−0.50", "−0.25", "0.00"]
  assert texts(0, 40, 5, whole=True) == ["0", "10", "20", "30", "40"]
  assert texts(1, 3, 6, whole=True) == ["1", "2", "3"]
  assert texts(0, 123_456, 4) == ["0", "50k", "100k"]
  assert texts(0, 2e-5, 2) == ["0.0e+00", "1.0e-05", "2.0e-05"]


def test_thinned_curves_keep_their_spikes():
  x = np.arange(10_000.0)
  y = np.zeros(10_000)
  y[7123] = 5.0
  thin_x, thin_y = svg.thinned(x, y)
  assert len(thin_x) < 700 and thin_y.max() == 5.0
  assert thin_x[0] == 0 and thin_x[-1] == 9999 and (np.diff(thin_x) > 0).all()
