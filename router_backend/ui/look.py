"""How the UI looks: theme, style and keys. System fonts only, so that the page needs nothing from elsewhere."""

from __future__ import annotations

from typing import Any

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Calm, and readable in light and dark."""
    return gr.themes.Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=SANS, font_mono=MONO
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color_dark="white",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto !important; }
.gradio-container main.contain { gap: 14px; }
footer { display: none !important; }
.rb-sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
#head h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -.015em; margin: 8px 0 2px; }
.rb-status { display: flex; align-items: baseline; gap: 10px; margin: 0; font-size: .92rem;
  color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.rb-status b { color: var(--body-text-color); font-weight: 600; }
.rb-dot { width: .6em; height: .6em; border-radius: 50%; flex: none; background: #64748b; }
.rb-dot.ok { background: #16a34a; } .rb-dot.loading { background: #d97706; } .rb-dot.failed { background: #dc2626; }
#prompt textarea { font-size: 1rem; line-height: 1.5; }
#live textarea { font-family: var(--font-mono); font-size: .82rem; line-height: 1.55; color: var(--body-text-color);
  -webkit-text-fill-color: var(--body-text-color); opacity: 1; }
#buttons { align-items: stretch; }
#examples .label { font-size: .8rem; }
#examples button { text-align: left; white-space: normal; }
.rb-alert { padding: 10px 14px; border-radius: 8px; border: 1px solid; overflow-wrap: anywhere; line-height: 1.45; }
.rb-alert b { display: block; }
#head .rb-alert { margin-top: 8px; }
.rb-alert { background: #fef2f2; border-color: #f1a5a5; color: #8b1a1a; }
.dark .rb-alert { background: #3a1416; border-color: #8f3034; color: #fecaca; }
.rb-alert.note { background: #f1f5f9; border-color: #cbd5e1; color: #334155; }
.dark .rb-alert.note { background: #1e293b; border-color: #475569; color: #e2e8f0; }
.rb-sums { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0; font-size: .88rem; min-height: 1.4em;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.rb-sums b { color: var(--body-text-color); font-weight: 600; }
.rb-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 14px 16px !important;
  background: var(--block-background-fill); }
.html-container { padding: 0 !important; }
.rb-card .rb-card { border: 0; padding: 0 !important; background: none; min-height: 0 !important; }
.rb-answer:not(:has(.rp, .rb-alert, .rb-sums)) { display: none; }
#plan { min-height: 22rem; }
.knobs { align-items: end; }
.rb-card h2, #backend h2 { font-size: .76rem; font-weight: 650; text-transform: uppercase; letter-spacing: .055em;
  margin: 16px 0 6px; color: var(--body-text-color-subdued); }
.rb-verdict { margin: 0 0 8px; font-weight: 600; }
.rb-verdict.yes { color: #166534; } .rb-verdict.no { color: #b3261e; }
.dark .rb-verdict.yes { color: #86efac; } .dark .rb-verdict.no { color: #fca5a5; }
.rb-wide { overflow-x: auto; margin: 12px 0; }
.rb-table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
.rb-table caption { text-align: left; font-weight: 600; padding: 4px 0 8px; }
.rb-table th, .rb-table td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0;
  border-width: 0 0 1px !important; }
.gradio-container .rb-table :is(th, td) { border-color: var(--border-color-primary) !important; }
.rb-table, .rb-table thead, .rb-table tr { border: 0 !important; background: none !important; }
.rb-budget th { font-weight: 400; } .rb-budget td:last-child { white-space: nowrap; }
.rb-bar { position: relative; min-width: 90px; width: 45%; }
.rb-bar i, .rb-bar b { position: absolute; left: 0; top: 9px; height: 10px; border-radius: 3px; }
.rb-bar i { background: #c7d2fe; } .rb-bar b { background: #4f46e5; }
.dark .rb-bar i { background: #312e81; } .dark .rb-bar b { background: #818cf8; }
.rb-copy { border: 1px solid var(--border-color-primary); border-radius: 8px; margin: 6px 0; padding: 6px 12px; }
.rb-copy summary { cursor: pointer; font-family: var(--font-mono); font-size: .84rem; }
.rb-copy pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; max-height: 18rem; overflow: auto;
  margin: 8px 0 4px; color: var(--body-text-color); background: none; }
.rb-copy button { float: right; border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 1px 10px;
  font-size: .8rem; color: var(--body-text-color); background: var(--background-fill-secondary); }
.rb-tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 10px; margin: 0; }
.rb-intro { margin: 0; color: var(--body-text-color-subdued); }
.rb-tiles div { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 12px; }
.rb-tiles dt { font-size: .8rem; color: var(--body-text-color-subdued); } .rb-tiles dd { margin: 0; font-weight: 600; }
.rb-file { color: #4338ca; text-decoration: underline; } .dark .rb-file { color: #a5b4fc !important; }
.rb-report { width: 100%; height: 44rem; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: Canvas; }
.rb-pick { display: block; font-size: .88rem; color: var(--body-text-color); } .rb-pick input { display: block; }
.rb-pick ::file-selector-button { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 4px 10px;
  color: var(--body-text-color); background: var(--background-fill-secondary); }
.rb-empty { color: var(--body-text-color-subdued); padding: 28px 8px; text-align: center; }

.rp { font-size: .94rem; line-height: 1.5; color: var(--body-text-color); overflow-wrap: anywhere; }
.rp section { margin: 0; padding: 12px 0; border-top: 1px solid var(--border-color-primary); }
.rp > :first-child { border-top: 0; padding-top: 0; }
.rp .rp-chips + section { border-top: 0; padding-top: 8px; }
.rp h2 { font-size: .76rem; font-weight: 650; text-transform: uppercase; letter-spacing: .055em; margin: 0 0 8px;
  color: var(--body-text-color-subdued); }
.rp h3 { font-size: .88rem; font-weight: 600; margin: 8px 0 2px; text-transform: capitalize; }
.rp h3:first-of-type { margin-top: 0; }
.rp p { margin: 0; }
.rp ul, .rp ol { list-style: none; margin: 0; padding: 0; }
.rp li { margin: 0; padding: 0; }
.rp .rp-chips { display: flex; margin-bottom: 6px; flex-wrap: wrap; gap: 6px; }
.rp-chip { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 1px 10px; font-size: .8rem; }
.rp-level { font-weight: 600; background: var(--background-fill-secondary); }
.rp-tool { display: inline-block; border-radius: 6px; padding: 0 8px; font-family: var(--font-mono); font-size: .8rem;
  font-weight: 600; line-height: 1.65; white-space: nowrap; background: hsl(var(--hue) 80% 93%);
  color: hsl(var(--hue) 75% 25%); }
.dark .rp-tool { background: hsl(var(--hue) 45% 22%); color: hsl(var(--hue) 85% 84%); }
.rp-hue-0 { --hue: 222; } .rp-hue-1 { --hue: 275; } .rp-hue-2 { --hue: 152; }
.rp-hue-3 { --hue: 24; } .rp-hue-4 { --hue: 335; } .rp-hue-5 { --hue: 190; }
.rp .rp-route > li { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 12px;
  background: var(--background-fill-secondary); }
.rp .rp-route > li + li { margin-top: 26px; position: relative; }
.rp .rp-route > li + li::before { content: "↓"; position: absolute; top: -25px; left: 18px; line-height: 24px;
  color: var(--body-text-color-subdued); font-size: 1.05rem; }
.rp-route .rp-tool { margin-right: 8px; }
.rp-todo > li, .rp-outline > li { display: flex; align-items: baseline; gap: 8px; }
.rp .rp-todo > li + li, .rp .rp-outline > li + li, .rp .rp-list > li + li { margin-top: 6px; }
.rp-box { flex: none; width: 1em; height: 1em; border: 1.5px solid var(--body-text-color-subdued); border-radius: 4px;
  line-height: .9; text-align: center; font-size: .9rem; transform: translateY(.12em); }
.rp-number { flex: none; min-width: 1.4em; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.rp .rp-list > li { padding-left: 16px; position: relative; }
.rp .rp-list > li::before { content: "•"; position: absolute; left: 3px; color: var(--body-text-color-subdued); }
.rp-waits { height: .8em; width: 60%; border-radius: 4px; background: var(--border-color-primary); opacity: .6; }
.rp .rp-chips { min-height: 1.8em; }
.rp-odds { font-size: .78rem; color: var(--body-text-color-subdued); }
.rp-diff { border-radius: 4px; padding: 0 6px; font-size: .7rem; font-weight: 600; background: #e0e7ff;
  color: #3730a3; }
.dark .rp-diff { background: #312e81; color: #e0e7ff; }
.rp-clip { display: inline-block; border-radius: 4px; padding: 0 6px; font-size: .7rem; font-weight: 600;
  line-height: 1.55; text-transform: none; letter-spacing: 0; background: #fef3c7; color: #854d0e;
  border: 1px solid #e9c46a; }
.dark .rp-clip { background: #3f2d0b; color: #fde68a; border-color: #92701f; }
.rp .rp-findings { border: 1px solid #e9c46a; border-radius: 8px; padding: 10px 14px; margin: 8px 0; }
@media (max-width: 520px) {
  #live textarea { max-height: 15rem; }
  .rb-card { padding: 12px !important; }
}
"""

# Ctrl/Cmd+Enter sends and Escape stops, as in the console. A file is read here, and its text put where it belongs.
HEAD = """<script>
document.addEventListener("keydown", (event) => {
  const press = (id) => { const button = document.getElementById(id); if (button && !button.disabled) button.click(); };
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); press("generate"); }
  if (event.key === "Escape") press("stop");
});
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.(".rb-copy button");
  if (!button) return;
  const text = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text);
    button.textContent = "Selected: press Ctrl+C";
  }
});
const put = (place, text) => {
  const box = document.querySelector(place);
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
};
document.addEventListener("change", async (event) => {
  const { into, most } = event.target.dataset ?? {};
  const file = event.target.files?.[0];
  if (!into || !file) return;
  const told = event.target.closest("label").nextElementSibling;
  const fits = file.size <= Number(most);
  told.textContent = fits ? `${file.name} is read.`
    : `${file.name} has ${Math.ceil(file.size / 1000)} kB; at most ${Math.floor(most / 1000)} kB can be sent.`;
  if (fits) put(`#${into} textarea`, await file.text());
});
</script>"""

# Its label names the copy button, which comes first in it.
JS = """() => {
  document.querySelector("#live textarea")?.setAttribute("aria-label", "Text as it comes");
  const begun = sessionStorage.getItem("router-request");
  if (begun) put("#prompt textarea", begun);
  sessionStorage.removeItem("router-request");
}"""


def options() -> dict[str, Any]:
    """What Gradio is told where the page is mounted or launched."""
    return {
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "theme": theme(),
        "css": CSS,
        "js": JS,
        "head": HEAD,
    }
