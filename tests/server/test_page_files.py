"""What the page's files say: nothing that the policy forbids or that leads elsewhere, and no name that is not there."""

import fnmatch
import re
from html.parser import HTMLParser

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "mlx_fastvlm" / "server" / "page"
HTML = (PAGE / "index.html").read_text(encoding="utf-8")
MODULES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.glob("*.js")}
STYLES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.glob("*.css")}


class Reader(HTMLParser):
    """The elements of index.html."""

    def __init__(self):
        super().__init__()
        self.elements = []
        self.texts = []
        self.feed(HTML)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append((self.elements[-1][0] if self.elements else "", data))


READ = Reader()
IDS = [attributes["id"] for _, attributes in READ.elements if "id" in attributes]


def test_index_refers_to_files_that_exist():
    found = [attributes.get("src") or attributes.get("href") for _, attributes in READ.elements]
    references = [reference for reference in found if reference]
    assert len(references) >= 3
    for reference in references:
        folder, _, name = reference.partition("/")
        name, _, symbol = name.partition("#")
        assert folder == "page"
        assert (PAGE / name).is_file(), reference
        assert not symbol or f'<symbol id="{symbol}"' in (PAGE / name).read_text(encoding="utf-8"), reference
    assert set(STYLES) == {reference.removeprefix("page/") for reference in references if reference.endswith(".css")}


def test_modules_import_files_that_exist_and_names_that_these_export():
    for name, code in MODULES.items():
        imports = re.findall(r"^import \{([^}]*)\} from \"\./([\w.]+)\";$", code, re.M)
        assert len(imports) == len(re.findall(r"^import\b|\bimport\(", code, re.M)), name
        for names, other in imports:
            exported = set(re.findall(r"^export (?:async )?(?:function\*?|class|const) (\w+)", MODULES[other], re.M))
            wanted = {word.strip() for word in names.split(",") if word.strip()}
            assert wanted <= exported, f"{name} wants {wanted - exported} of {other}"
            assert all(len(re.findall(rf"\b{word}\b", strip(code))) > 1 for word in wanted), f"{name}: {wanted}"


def test_every_module_is_reached_from_the_page():
    reached, new = set(), {"app.js"}
    while new:
        reached |= new
        new = {other for name in new for other in re.findall(r"from \"\./([\w.]+)\"", MODULES[name])} - reached
    assert reached == set(MODULES)


def test_nothing_inline():
    """The policy would forbid it, so it would not work."""
    for tag, attributes in READ.elements:
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "script":
            assert attributes == {"type": "module", "src": "page/app.js"}
    assert not [data for tag, data in READ.texts if tag == "script" and data.strip()]


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.iterdir()))
def test_no_outside_address(name):
    text = (PAGE / name).read_text(encoding="utf-8")
    code = strip(text) if name.endswith(".js") else text
    for address in re.findall(r"\w+://[^\s\"')`]*", code):
        assert address in ("http://www.w3.org/2000/svg", "http://127.0.0.1"), address
    assert "@import" not in text
    assert not name.endswith(".css") or "url(" not in text


def strip(code):
    """JavaScript without its comments."""
    return re.sub(r"(^|\s)//[^\n]*", r"\1", re.sub(r"/\*.*?\*/", "", code, flags=re.S), flags=re.M)


def test_text_never_becomes_html_or_code():
    for name, code in MODULES.items():
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage", code
        )
        assert found is None, f"{name}: {found}"


def test_the_key_is_kept_in_the_session_only():
    assert [name for name, code in MODULES.items() if "sessionStorage." in code] == ["app.js"]
    assert "cookie" not in "".join(MODULES.values()).lower()


def test_ids_are_unique_and_those_that_the_modules_look_up():
    assert len(IDS) == len(set(IDS))
    wanted = set()
    for name, code in MODULES.items():
        calls = re.findall(r"\bbyId\(([^)]*)\)", code)
        wanted |= {argument[1:-1] for argument in calls if re.fullmatch(r'"[\w-]+"', argument)}
        others = {argument for argument in calls if not re.fullmatch(r'"[\w-]+"', argument)}
        assert others <= {"id", "name", "`show-${name}`", "button", "group"}, name
    wanted |= {"chat", "camera", "show-chat", "show-camera", "pick", "pick-first", "presets", "camera-presets"}
    referred = {
        attributes.get(name) for _, attributes in READ.elements for name in ("aria-labelledby", "aria-describedby")
    } | set(re.findall(r"#([\w-]+)[\s,.{]", "".join(STYLES.values())))
    assert wanted <= set(IDS)
    assert set(IDS) <= wanted | referred


def test_labels_and_descriptions_resolve():
    for tag, attributes in READ.elements:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            if name in attributes:
                assert attributes[name] in IDS, f"{tag} {name}={attributes[name]}"


def test_every_control_has_a_name():
    labelled = {attributes["for"] for tag, attributes in READ.elements if tag == "label"}
    for tag, attributes in READ.elements:
        if tag in ("input", "select", "textarea", "video", "dialog"):
            named = attributes.get("id") in labelled or "aria-label" in attributes or "aria-labelledby" in attributes
            assert named, (tag, attributes)
        if tag == "button":
            assert attributes.get("type") in ("button", "submit"), attributes


def test_what_speaks_dark_light_and_still():
    roles = [attributes["role"] for _, attributes in READ.elements if "role" in attributes]
    assert {"alert", "status"} <= set(roles)
    assert "prefers-color-scheme: dark" in STYLES["theme.css"]
    assert "prefers-reduced-motion: reduce" in STYLES["theme.css"]
    assert "outline: none" not in "".join(STYLES.values())


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_are_far_enough_apart(scheme):
    """WCAG's contrast: 4.5 for text, 3 for lines around controls."""
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", STYLES["theme.css"].split("@media")[scheme]))
    pairs = [(text, back) for text in ("text", "quiet", "bad") for back in ("back", "raised")] + [("on-main", "main")]
    for text, back in pairs:
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    assert contrast(colours["line"], colours["back"]) >= 3
    assert contrast(colours["main"], colours["back"]) >= 3


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    levels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_files_are_short():
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 300 for path in PAGE.iterdir())


def test_they_are_shipped():
    """tests/whole/test_wheel.py looks into the wheel itself."""
    line = re.search(r"^mlx_fastvlm = (\[.*\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    patterns = re.findall(r'"([^"]+)"', line[1])
    for path in PAGE.iterdir():
        name = path.relative_to(ROOT / "mlx_fastvlm").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
