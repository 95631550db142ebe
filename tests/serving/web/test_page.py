"""The search page in a browser: every way of searching, in both languages, on phone and desktop."""

import json
import shutil
import urllib.parse

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
# Words of both languages: a query, and the button below a result.
ENGLISH = {"red": "a red picture", "like": "More like this", "locale": "en-GB"}
CHINESE = {"red": "红色的图片", "like": "更多类似", "locale": "zh-CN"}
CARD = "#results .card"
REMARK = "([text]) => document.querySelector('#remark').textContent.includes(text)"


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page that was opened, and what happened on it."""

    def __init__(self, browser, address, path="", size=DESKTOP, words=ENGLISH, **options):
        self.words, self.searches, self.problems = words, [], []
        self.context = browser.new_context(viewport=size, locale=words["locale"], **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._note(request, address))
        self.page.goto(address + path)
        self.page.wait_for_selector("#examples button, .card, #remark:visible", state="attached")

    def _note(self, request, address):
        if not request.url.startswith((address, "blob:", "data:")):
            self.problems.append(f"another host: {request.url}")
        if request.url.endswith("/api/search"):
            self.searches.append(request)

    def wait(self, script, *arguments):
        self.page.wait_for_function(script, arg=arguments)

    def colours(self, n=2):
        """The colours of the first results, from their captions."""
        labels = [
            each.get_attribute("aria-label") for each in self.page.query_selector_all(".open")
        ]
        names = {"red": "红", "blue": "蓝", "green": "绿", "yellow": "黄"}
        return [
            next((name for name, han in names.items() if name in each or han in each), each)
            for each in labels[:n]
        ]

    def expect(self, *colours):
        """Wait until these are the colours of the first results."""
        for _ in range(100):
            if self.colours(len(colours)) == list(colours):
                return
            self.page.wait_for_timeout(50)
        assert self.colours(len(colours)) == list(colours)

    def close(self):
        self.context.close()
        assert self.problems == []


def visits(browser, address):
    """A function that opens the page; at the end, nothing may have gone wrong on it."""
    opened = []

    def open_page(*arguments, **options):
        opened.append(Visit(browser, address, *arguments, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page of the pictures."""
    yield from visits(browser, address)


@pytest.fixture
def visit_playing(browser, playing):
    """Opens the page of the sounds and clips."""
    yield from visits(browser, playing)


SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
LANGUAGES = pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["en", "zh"])


@SIZES
@LANGUAGES
def test_every_way_of_searching(visit, size, words, web_gallery):
    at = visit(size=size, words=words)
    page = at.page
    page.fill("#text", words["red"])
    at.expect("red", "red")
    assert (words is CHINESE) == ("的图片" in page.inner_text(f"{CARD} .text >> nth=0"))

    page.set_input_files("#file", web_gallery.image_paths[4][0])  # blue; the share is a half
    page.wait_for_selector("#share:visible")
    page.fill("#share input", "0")
    at.expect("blue", "blue")
    page.fill("#share input", "100")
    at.expect("red", "red")
    page.fill("#text", "")
    at.expect("blue", "blue")
    page.click("#picture button")
    page.wait_for_selector("#start:visible")

    page.click("#examples button >> nth=0")
    at.expect("red", "red")
    page.click(f'.foot button:text("{words["like"]}") >> nth=0')
    page.wait_for_selector("#like:visible")
    at.expect("red")
    assert page.locator(CARD).count() == 11
    page.click("#like button")

    page.fill("#text", words["red"])
    page.click("#options summary")
    page.click("#add")
    page.keyboard.type(words["red"])
    page.fill(".term input[type=range]", "-1")
    at.wait("() => document.querySelector('.open')?.ariaLabel.match(/red|红/) === null")
    page.click(".term button")
    page.check("#filters label:has-text('green') input")
    at.expect("green", "green")
    assert page.locator(CARD).count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.lang") == ("zh-CN" if words is CHINESE else "en")


def test_a_picture_is_dropped_or_pasted(visit, web_gallery):
    at = visit()
    content = list(web_gallery.image_paths[4][0].read_bytes())
    give = """([kind, content]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(content)], "a.png", {type: "image/png"}));
        const given = kind === "paste" ? {clipboardData: data} : {dataTransfer: data};
        const Event = kind === "paste" ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new Event(kind, {bubbles: true, cancelable: true, ...given}));
    }"""
    for kind in ("drop", "paste"):
        at.page.evaluate(give, [kind, content])
        at.expect("blue", "blue")
        at.page.click("#picture button")
        at.page.wait_for_selector("#start:visible")


def test_minus_words_in_both_scripts(visit):
    at = visit()
    for text in ("picture -red", "图片 －红色"):
        at.page.fill("#text", text)
        at.wait("() => document.querySelectorAll('.card').length === 12")
        at.page.wait_for_timeout(400)
        assert at.colours(12)[-2:] == ["red", "red"]


def test_a_link_reproduces_the_query_and_back_leads_back(visit, address):
    at = visit()
    at.page.fill("#text", "a red picture")
    at.page.keyboard.press("Enter")
    at.expect("red", "red")
    at.page.click("#options summary")
    at.page.fill("#filters input[type=number] >> nth=0", "2")
    at.wait("() => document.querySelectorAll('.card').length === 6")
    link = at.page.url.removeprefix(address)
    assert json.loads(urllib.parse.parse_qs(link[2:])["where"][0]) == {"size": {"$gte": 2}}
    other = visit(link)
    other.wait("() => document.querySelectorAll('.card').length === 6")
    assert other.colours(1) == ["red"] and other.page.input_value("#text") == "a red picture"

    at.page.click(f"{CARD} .foot button >> nth=0")
    at.page.wait_for_selector("#like:visible")
    at.page.go_back()
    at.wait("() => document.querySelectorAll('.card').length === 6")
    assert at.page.input_value("#text") == "a red picture"


def test_typing_sends_few_searches_and_composing_none(visit):
    at = visit()
    at.page.type("#text", "a blue picture", delay=20)
    at.expect("blue", "blue")
    assert len(at.searches) <= 3
    n = len(at.searches)
    at.page.evaluate("""() => {
        const text = document.getElementById("text");
        text.value = "hong";
        text.dispatchEvent(new InputEvent("input", {isComposing: true, bubbles: true}));
    }""")
    at.page.wait_for_timeout(500)
    assert len(at.searches) == n
    at.page.evaluate("""() => {
        const text = document.getElementById("text");
        text.value = "红色";
        text.dispatchEvent(new CompositionEvent("compositionend", {bubbles: true}));
    }""")
    at.expect("red", "red")


def test_the_large_view_by_keyboard(visit):
    at = visit("?q=a+red+picture")
    at.expect("red", "red")
    at.page.focus(".open >> nth=0")
    at.page.keyboard.press("Enter")
    at.page.wait_for_selector("dialog[open]")
    first = at.page.inner_text("dialog")
    assert "红色的图片" in first and "colour" in first and "size" in first
    at.page.keyboard.press("ArrowRight")
    at.wait("(first) => document.querySelector('dialog').innerText !== first[0]", first)
    at.page.keyboard.press("ArrowLeft")
    at.wait("(first) => document.querySelector('dialog').innerText === first[0]", first)
    at.page.keyboard.press("Escape")
    at.page.wait_for_selector("dialog[open]", state="detached")
    assert at.page.evaluate("document.activeElement.className") == "open"


def test_honest_messages(visit, tmp_path):
    at = visit()
    at.page.fill("#text", "zxqv")
    at.wait(REMARK, "knows no word")
    at.page.fill("#text", "a red picture")
    at.page.click("#options summary")
    at.page.fill("#filters input[type=number] >> nth=0", "9")
    at.wait(
        "() => document.querySelector('#remark').textContent === 'No item fulfils the filters.'"
    )
    at.page.click("#language")
    at.wait("() => document.querySelector('#remark').textContent === '没有符合筛选条件的条目。'")
    at.page.click("#reset")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    at.page.set_input_files("#file", broken)
    at.wait(REMARK, "not an image")
    assert [each for each in at.problems if "422" not in each] == []
    at.problems.clear()  # the browser itself notes the answer 422
    at.page.click("#picture button")
    at.page.route("**/api/search", lambda route: route.abort())
    at.page.fill("#text", "a red picture")
    at.wait(REMARK, "无法连接")
    assert [each for each in at.problems if "ERR_FAILED" not in each] == []
    at.problems.clear()


def check_accessibility(page):
    """No serious fault may be found by axe-core, which is put into the page."""
    found = axe_module.Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


@SCHEMES
@SIZES
def test_no_serious_fault_of_accessibility(visit, scheme, size):
    at = visit(size=size, color_scheme=scheme, bypass_csp=True)
    check_accessibility(at.page)
    at.page.fill("#text", "zxqv red")
    at.page.click("#options summary")
    at.page.click("#add")
    at.page.click(".foot button >> nth=0")
    at.page.fill("#text", "a picture")
    at.page.wait_for_selector("#share:visible")
    at.page.wait_for_timeout(500)
    check_accessibility(at.page)
    at.page.click(".open >> nth=0")
    at.page.wait_for_selector("dialog[open]")
    check_accessibility(at.page)


def test_back_leads_through_what_was_searched(visit):
    at = visit()
    for text in ("a red picture", "a blue picture"):
        at.page.fill("#text", text)
        at.page.wait_for_timeout(600)  # the search while typing
        at.page.keyboard.press("Enter")
        at.expect(text.split()[1])
    at.page.click("#options summary")
    at.page.check("#filters label:has-text('green') input")
    at.expect("green")
    at.page.go_back()  # the focus is still in the filters
    at.expect("blue")
    assert not at.page.is_checked("#filters label:has-text('green') input")
    at.page.go_back()
    at.expect("red")
    assert at.page.input_value("#text") == "a red picture"
    at.page.go_back()
    at.page.wait_for_selector("#start:visible")
    at.page.go_forward()
    at.expect("red")


def test_back_restores_the_terms(visit):
    at = visit("?term=1:a+red+picture")
    at.expect("red")
    at.page.fill(".term input[type=text]", "a blue picture")
    at.expect("blue")
    at.page.go_back()
    at.expect("red")
    assert at.page.input_value(".term input[type=text]") == "a red picture"
    at.page.click(".term button")
    assert at.page.evaluate("document.activeElement.id") == "add"


def test_the_link_is_copied(visit, web_gallery):
    at = visit("?q=red", permissions=["clipboard-read", "clipboard-write"])
    at.expect("red")
    at.page.click("#options summary")
    at.page.click("#copy")
    at.wait("() => document.querySelector('#status').textContent === 'The link was copied.'")
    assert at.page.evaluate("navigator.clipboard.readText()") == at.page.url
    at.page.set_input_files("#file", web_gallery.image_paths[4][0])
    at.page.wait_for_selector("#share:visible")
    at.page.wait_for_timeout(500)
    at.page.click("#copy")
    at.wait("() => document.querySelector('#status').textContent.includes('cannot hold')")


def test_the_link_is_shown_where_the_clipboard_is_closed(visit):
    """Browsers open it on HTTPS and on this machine only."""
    at = visit("?q=red")
    at.expect("red")
    at.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    at.page.click("#options summary")
    at.page.click("#copy")
    at.wait("() => document.querySelector('#status').textContent.includes('address bar')")


def test_a_pause_before_composing_sends_nothing(visit):
    at = visit()
    at.page.evaluate("""() => {
        const text = document.getElementById("text");
        for (const [value, isComposing] of [["图", false], ["图h", true], ["图hong", true]]) {
            text.value = value;
            text.dispatchEvent(new InputEvent("input", {isComposing, bubbles: true}));
        }
    }""")
    at.page.wait_for_timeout(500)
    assert at.searches == []


def test_text_is_dropped_and_pasted_as_text(visit):
    at = visit()
    prevented = at.page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add("red", "text/plain");
        const drop = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.getElementById("text").dispatchEvent(drop);
        data.items.add("<b>red</b>", "text/html");  // and a picture, as spreadsheets do
        data.items.add(new File(["x"], "cells.png", {type: "image/png"}));
        const paste = new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
        document.getElementById("text").dispatchEvent(paste);
        return drop.defaultPrevented;
    }""")
    at.page.wait_for_timeout(300)
    assert not prevented and at.searches == [] and not at.page.is_visible("#picture")


def test_a_large_picture_is_not_sent(visit):
    at = visit("?q=red")
    at.expect("red")
    sent = len(at.searches)
    at.page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(20 * 2 ** 20 + 1)], "a.png", {type: "image/png"}));
        document.getElementById("form").requestSubmit();  // its answer must not hide the message
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }""")
    at.page.wait_for_timeout(500)
    assert "20 MB" in at.page.inner_text("#remark")
    assert len(at.searches) <= sent + 1 and not at.page.is_visible("#picture")


def test_a_gallery_that_fails_is_reported(visit):
    at = visit()
    answer = {"status": 500, "json": {"error": "the service failed: see its log"}}
    at.page.route("**/api/gallery", lambda route: route.fulfill(**answer))
    at.page.reload()
    at.wait(REMARK, "see its log")
    assert [each for each in at.problems if "500" not in each] == []
    at.problems.clear()


def test_captions_name_their_language(visit):
    at = visit("?q=red")
    at.expect("red")
    assert at.page.get_attribute(f"{CARD} .text >> nth=0", "lang") == "en"
    at.page.click(".open >> nth=0")
    assert at.page.get_attribute("dialog h2", "lang") == "en"
    assert at.page.get_attribute("dialog li", "lang") == "zh"
    assert at.page.is_disabled("dialog button:text-is('Previous')")
    assert not at.page.is_disabled("dialog button:text-is('Next')")


# Sounds and clips

SOUND, CLIP = ".card:has(audio):not(:has(img[src*=video]))", ".card img[src*='modality=video']"
GIVE = """([name, type, content]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(content)], name, {type}));
    const drop = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
    document.body.dispatchEvent(drop);
}"""
# Keeps the names of the fields of the last form.
LISTEN = """() => {
    const send = window.fetch;
    window.fetch = (address, request) => {
        if (request?.body instanceof FormData) window.fields = [...request.body.keys()];
        return send(address, request);
    };
}"""


def found(visit_playing, **options):
    """The page with all items as results."""
    at = visit_playing("?q=a+tone", **options)
    at.wait("() => document.querySelectorAll('.card').length === 6")
    return at


@LANGUAGES
def test_a_sound_plays_and_one_alone(visit_playing, words):
    at = found(visit_playing, words=words)
    players = at.page.locator(".card audio")
    assert players.count() == 3
    name = "声音: " if words is CHINESE else "Sound: "
    for number in range(3):
        label = players.nth(number).get_attribute("aria-label")
        assert label.startswith(name) and len(label) > len(name)
    at.page.click("#options summary")  # browsers play after a gesture only
    players.nth(0).evaluate("player => player.play()")
    at.wait("() => document.querySelectorAll('.card audio')[0].currentTime > 0")
    players.nth(1).evaluate("player => player.play()")
    at.wait("() => document.querySelectorAll('.card audio')[1].currentTime > 0")
    assert players.nth(0).evaluate("player => player.paused")
    assert 0.9 < players.nth(0).evaluate("player => player.duration") < 1.1


def test_clips_move_unless_the_visitor_wants_less_motion(visit_playing):
    at = found(visit_playing)
    clip = at.page.locator(CLIP)
    assert clip.count() == 3
    at.wait("([css]) => document.querySelector(css).naturalWidth === 320", CLIP)
    seen = set()
    for _ in range(20):
        seen.add(clip.first.screenshot())
        at.page.wait_for_timeout(100)
        if len(seen) > 2:
            break
    assert len(seen) > 2
    still = found(visit_playing, reduced_motion="reduce")
    assert still.page.locator(CLIP).count() == 0 and still.page.locator(".card img").count() == 5


@SIZES
def test_the_large_view_of_a_sound(visit_playing, size):
    at = found(visit_playing, size=size)
    at.page.click(f"{SOUND} .open >> nth=0")
    player = at.page.locator("dialog audio")
    at.wait("() => document.querySelector('dialog audio').duration > 0.9")
    inner, outer = player.bounding_box(), at.page.locator("dialog").bounding_box()
    assert outer["x"] < inner["x"]
    assert inner["x"] + inner["width"] < outer["x"] + outer["width"]
    assert at.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    title = at.page.inner_text("#title")
    player.focus()
    at.page.keyboard.press("ArrowRight")  # moves within the sound, not to the next item
    at.page.wait_for_timeout(200)
    assert at.page.inner_text("#title") == title
    player.evaluate("player => { player.loop = true; return player.play(); }")
    at.page.focus("dialog .steps button:last-child")
    at.page.keyboard.press("Escape")
    at.wait("() => document.querySelector('dialog audio').paused")


def test_the_large_view_of_a_clip_moves_and_a_broken_one_has_its_thumbnail(visit_playing):
    at = found(visit_playing, reduced_motion="reduce")  # it was opened to be seen
    at.page.click(".card:has(.text:text('a square')) .open >> nth=0")
    at.wait("() => document.querySelector('dialog img').src.includes('modality=video')")
    at.wait("() => document.querySelector('dialog img').naturalWidth === 320")
    assert at.page.locator("dialog audio").count() == 0
    at.page.keyboard.press("Escape")
    at.page.route("**/api/media/**", lambda route: route.abort())
    at.page.reload()
    at.page.click(".card:has(.text:text('a square')) .open >> nth=0")
    at.wait("() => document.querySelector('dialog img')?.src.includes('/api/thumbnails/')")
    at.wait("() => document.querySelector('dialog img').naturalWidth === 768")
    assert [each for each in at.problems if "ERR_FAILED" not in each] == []
    at.problems.clear()


@LANGUAGES
def test_files_of_sounds_and_clips_go_under_their_names(visit_playing, words, playing_folder):
    at = visit_playing(words=words)
    at.page.evaluate(LISTEN)
    assert at.page.inner_text("#choose") == ("文件…" if words is CHINESE else "File…")
    accepted = at.page.get_attribute("#file", "accept").split(",")
    assert {"audio/*", "video/*", ".wav", ".flac", ".gif", ".webm"} <= set(accepted)
    at.page.set_input_files("#file", playing_folder / "0.wav")
    at.wait("() => document.querySelector('.foot')?.textContent.startsWith('1 · 1.000')")
    assert "300" in at.page.inner_text(".card .text >> nth=0")
    assert "audio" in at.page.evaluate("window.fields") and at.page.is_hidden("#picture img")
    assert "0.wav" in at.page.inner_text("#picture")
    at.page.fill("#text", "a tone")
    at.page.wait_for_selector("#share:visible")
    assert at.page.inner_text("#kind") == ("文件" if words is CHINESE else "file")
    at.page.click("#picture button")

    gif, wav = (list((playing_folder / name).read_bytes()) for name in ("0.gif", "0.wav"))
    for name, type, content, field in (
        ("a.gif", "image/gif", gif, "video"),
        ("a.gif", "", gif, "video"),  # systems that do not know the type
        ("A.WAV", "", wav, "audio"),
        ("sound", "audio/x-wav", wav, "audio"),
        ("pasted", "image/gif", gif, "video"),
    ):
        at.page.evaluate("window.fields = []")
        at.page.evaluate(GIVE, [name, type, content])
        at.wait("([field]) => window.fields.includes(field)", field)
    at.page.evaluate(GIVE, ["notes.txt", "text/plain", [65]])
    at.wait(REMARK, ".wav、.flac" if words is CHINESE else "Supported: .wav, .flac")


def test_what_the_chooser_takes_follows_from_the_gallery(visit):
    at = visit()
    assert at.page.inner_text("#choose") == "Picture…"
    assert at.page.get_attribute("#file", "accept") == "image/*"
    at.page.click("#language")
    assert at.page.inner_text("#choose") == "图片…"
    answer = {"attributes": [], "examples": ["a"], "suffixes": {}, "modalities": ["text"]}
    answer |= {"size": 1, "run": "texts"}
    at.page.route("**/api/gallery", lambda route: route.fulfill(json=answer))
    at.page.reload()
    at.page.wait_for_selector("#choose", state="hidden")


@SCHEMES
@SIZES
def test_players_and_clips_have_no_serious_fault_of_accessibility(visit_playing, scheme, size):
    at = found(visit_playing, size=size, color_scheme=scheme, bypass_csp=True)
    check_accessibility(at.page)
    for css in (f"{SOUND} .open >> nth=0", f"{CLIP} >> nth=0"):
        at.page.click(css)
        at.page.wait_for_selector("dialog[open]")
        check_accessibility(at.page)
        at.page.keyboard.press("Escape")
        at.page.wait_for_selector("dialog[open]", state="detached")
