"""Laws of the demo page, in a real browser: it says what the library says, about the same samples, and asks nobody else.

They need Chromium, playwright and npm; where one is missing they are skipped and say which.
"""

from __future__ import annotations

import importlib.util
import shutil
import threading

import numpy as np
import pytest
import torch

from robustdistiller.acoustics.convolution import audible_power
from robustdistiller.acoustics.environment import Environment
from robustdistiller.acoustics.noise import NoiseDraw
from robustdistiller.acoustics.rooms import RoomBank
from robustdistiller.acoustics.scene import Scene
from robustdistiller.audio.io import read_audio, write_audio
from robustdistiller.config import EnvironmentConfig
from robustdistiller.demo.site import build_site, demo_room, serve
from robustdistiller.errors import UserError
from robustdistiller.runtime import Classifier

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [
    name
    for name, there in (
        ("Chromium", CHROMIUM), ("npm", shutil.which("npm")), ("playwright", importlib.util.find_spec("playwright"))
    )
    if not there
]  # fmt: skip
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
in_browser = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is missing")


@pytest.fixture(scope="module")
def site(student_folder, head_file, tmp_path_factory):
    if "npm" in MISSING:
        pytest.skip("npm is missing")
    pytest.importorskip("espeakng_loader")
    return build_site([f"tiny={student_folder}"], [head_file], tmp_path_factory.mktemp("demo") / "site").parent


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture
def served():
    """The function site → address; the servers end with the test."""
    servers = []

    def start(folder):
        servers.append(serve(folder))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page(browser, site, served):
    page = browser.new_page()
    open_page(page, served(site))
    yield page
    page.close()


def open_page(page, address):
    page.goto(address)
    page.wait_for_selector("html[data-ready=true]")


def choose(page, snr=None, room=None, noise=None):
    """Move the sliders as a reader does, and wait for the answers."""
    if noise is not None:
        page.select_option("#noise", label=noise)
    for id, value in (("snr", snr), ("room", room)):
        if value is not None:
            page.locator(f"#{id}").fill(str(value))
    page.wait_for_selector("#answers[aria-busy=false]")


def samples(page, what="contaminated"):
    return np.array(page.evaluate(f"Array.from(robustdistillerDemo.{what})"), np.float32)


def wait_for_text(page, selector, text):
    page.locator(selector, has_text=text).wait_for()


@in_browser
@pytest.mark.parametrize("snr, room", [(-10, 0), (0, 3), (30, 14)])
def test_the_snr_of_the_slider_is_the_snr_of_the_samples(page, snr, room):
    choose(page, snr, room, "rain")
    heard = samples(page)
    choose(page, noise="none")
    reverberant = samples(page)
    noise = heard - reverberant
    speech_power, clean_power, noise_power = map(audible_power, (reverberant, samples(page, "speech"), noise))
    assert 10 * np.log10(speech_power / noise_power) == pytest.approx(snr, abs=0.05)
    assert speech_power == pytest.approx(clean_power, rel=1e-3)


@in_browser
@pytest.mark.parametrize("room", [0, 7])
def test_the_page_contaminates_as_the_library_does(page, site, room):
    choose(page, 5, room, "wind")
    speech = samples(page, "speech")
    noise = read_audio(site / "noise" / "wind.wav")[: len(speech)]
    bank = RoomBank()
    if room:
        bank.load = lambda id: demo_room(float(id))
    scene = Scene(
        "x", kind="both", snr_db=5.0, noises=(NoiseDraw("wind"),), room=f"{0.1 + room / 10:.1f}" if room else None
    )
    environment = Environment(EnvironmentConfig(), None, bank)
    wanted = environment.render(
        torch.from_numpy(speech)[None], torch.tensor([len(speech)]), torch.from_numpy(noise)[None], [scene]
    )[0].numpy()
    assert np.abs(samples(page) - wanted).max() < 1e-3 * np.abs(wanted).max()


@in_browser
def test_answers_are_those_of_the_python_runtime(page, site):
    classifier = Classifier(site / "models" / "tiny-smart-home.onnx")
    for number in range(page.locator("#utterance option").count()):
        page.select_option("#utterance", str(number))
        choose(page, 5, number % 3)
        answer = classifier(samples(page))
        shown = page.evaluate("robustdistillerDemo.answers[0].slots.map((slot) => slot.probabilities)")
        for slot, wanted in zip(shown, answer.distributions.values(), strict=True):
            assert slot == pytest.approx(wanted.tolist(), abs=1e-4)
        assert page.inner_text(".answer") == answer.label


@in_browser
def test_nothing_leaves_the_page_and_no_microphone_is_touched(browser, site, served):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script("navigator.mediaDevices.getUserMedia = () => { window.asked = true; throw Error('no'); }")
    address = served(site)
    open_page(page, address)
    choose(page, 0, 5, "rain")
    assert asked and all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert not page.evaluate("window.asked")
    page.click("#record")
    wait_for_text(page, "#alert", "microphone")
    assert page.evaluate("window.asked")
    page.close()


@in_browser
@pytest.mark.parametrize("spoil", ["cut", "missing"])
def test_a_broken_model_is_named_in_a_sentence(browser, site, served, tmp_path, spoil):
    copy = shutil.copytree(site, tmp_path / "site")
    model = copy / "models" / "tiny-smart-home.onnx"
    if spoil == "cut":
        model.write_bytes(model.read_bytes()[:1000])
    else:
        model.unlink()
    page = browser.new_page()
    open_page(page, served(copy))
    message = page.inner_text("#alert")
    assert "models/tiny-smart-home.onnx" in message and "build the site again" in message
    page.close()


@in_browser
def test_files_of_a_reader_are_used_or_refused_in_a_sentence(page, tmp_path):
    (tmp_path / "text.wav").write_bytes(b"this is no audio")
    page.set_input_files("#file", tmp_path / "text.wav")
    wait_for_text(page, "#alert", "text.wav")
    write_audio(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    page.set_input_files("#file", tmp_path / "silent.wav")
    wait_for_text(page, "#alert", "silent")
    tone = 0.1 * np.sin(np.arange(16_000) / 5).astype(np.float32)
    write_audio(tmp_path / "tone.wav", tone)
    page.set_input_files("#file", tmp_path / "tone.wav")
    wait_for_text(page, "#speech-about", "tone.wav")
    assert page.inner_text("#alert") == ""
    assert np.abs(samples(page, "speech") - tone).max() < 1e-4


@in_browser
def test_memory_does_not_grow_with_changes(page):
    session = page.context.new_cdp_session(page)

    def heap():
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"]

    def change(count):
        page.evaluate(
            """async (count) => {
              for (let k = 0; k < count; k++) {
                const slider = document.getElementById(k % 2 ? "snr" : "room");
                slider.value = k % 15;
                slider.dispatchEvent(new Event("input"));
                const answers = document.getElementById("answers");
                while (answers.ariaBusy === "true") await new Promise((resolve) => setTimeout(resolve));
              }
            }""",
            count,
        )

    change(20)
    before = heap()
    change(200)
    assert heap() - before < 2**20


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_every_control_has_a_name(browser, site, served, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    open_page(page, served(site))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.locator("select, button, input").all():
        assert control.evaluate("e => (e.labels?.length && e.labels[0].textContent.trim()) || e.textContent.trim()")
    page.close()


def test_a_head_of_another_model_is_refused(head_file, tmp_path):
    with pytest.raises(UserError, match="None of the heads was trained on mini-edge"):
        build_site(["mini-edge"], [head_file], tmp_path / "site")
    with pytest.raises(UserError, match="not a stream: evaluate mini-stream alone"):
        build_site(["mini-stream@160+160"], [head_file], tmp_path / "site")
