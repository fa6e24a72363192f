const quiet = { domainColor: "var(--line)", tickColor: "var(--line)", gridColor: "var(--line)", labelColor: "var(--soft)", titleColor: "var(--soft)", titleFontWeight: "normal" };
const config = { background: "transparent", view: { stroke: null }, axis: quiet, legend: { labelColor: "var(--ink)" }, text: { color: "var(--soft)" }, mark: { color: "var(--c1)" } };
const drawn = [...document.querySelectorAll("script.spec")].map(script =>
  vegaEmbed(script.previousElementSibling, JSON.parse(script.textContent), { renderer: "svg", actions: false, config, tooltip: { theme: "custom" } }));
Promise.all(drawn).then(() => performance.mark("drawn"));
