"""Looks at a page in a real browser: Debian's chromium, headless. None where it is not installed."""

import json
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import urllib.parse
import zlib

# What a reader would see at a glance: does it fit, is everything drawn, can the text be read on what lies behind it.
PROBE = """
<script>
const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const rgb = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return rgb(c);
  }
  return [255, 255, 255];
};
let least = 99, words = "";
for (const e of document.querySelectorAll("h1,h2,h3,p,td,th,b,li,span,svg text")) {
  const style = getComputedStyle(e);
  const c = contrast(rgb(e instanceof SVGElement ? style.fill : style.color), behind(e));
  if (e.textContent.trim() && c < least) { least = c; words = e.textContent.trim().slice(0, 40); }
}
const outside = [];
for (const t of document.querySelectorAll("svg text")) {
  const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
  if (a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2)
    outside.push(t.textContent);
}
document.documentElement.setAttribute("data-seen", encodeURIComponent(JSON.stringify({
  overflow: document.documentElement.scrollWidth - innerWidth,
  drawings: [...document.querySelectorAll("svg")].map(s => Math.round(s.getBoundingClientRect().height)),
  contrast: least, faintest: words, outside: outside,
  background: rgb(getComputedStyle(document.body).backgroundColor)})));
</script>
"""


def find():
    return shutil.which("chromium") or shutil.which("chromium-browser")


def run(*flags):
    return subprocess.run(
        [find(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,3200", *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=120,
        text=True,
    ).stdout


def first_pixel(png):
    data, at, packed = pathlib.Path(png).read_bytes(), 8, b""
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += size + 12
    # Row 0, pixel 0: whatever the row's filter, there is nothing before it to be predicted from.
    return list(zlib.decompress(packed)[1:4])


def look(html, dark, keep=None):
    """What PROBE saw and the colour of the first pixel drawn. keep: where to leave the picture."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    with tempfile.TemporaryDirectory() as folder:
        page, picture = pathlib.Path(folder, "page.html"), keep or str(pathlib.Path(folder, "page.png"))
        page.write_text(html.replace("</body>", PROBE + "</body>"))
        dom = run(scheme, "--dump-dom", f"file://{page}")
        run(scheme, f"--screenshot={picture}", f"file://{page}")
        found = re.search(r'data-seen="([^"]*)"', dom)
        if not found:
            raise AssertionError(f"the page did not load:\n{dom[:1000]}")
        seen = json.loads(urllib.parse.unquote(found.group(1)))
        seen["pixel"] = first_pixel(picture)
        return seen
