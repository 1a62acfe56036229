"use strict";
// Draws every figure that the page holds as data, in the colours of the reader's theme.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colors = () => dark.matches
    ? { text: "#e6e8eb", grid: "#3a3f47" } : { text: "#1c1e21", grid: "#e3e5e9" };

  const themed = (layout) => {
    const { text, grid } = colors();
    const axes = Object.entries(layout).filter(([name]) => /^[xy]axis/.test(name));
    const painted = axes.map(([name, axis]) => [name, { ...axis, gridcolor: grid }]);
    return { ...layout, ...Object.fromEntries(painted), font: { color: text, size: 14 },
             paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
  };

  const config = { responsive: true, displaylogo: false };
  const draw = () => {
    for (const node of document.querySelectorAll("script[type='application/json']")) {
      const { data, layout } = JSON.parse(node.textContent);
      Plotly.react(document.getElementById(node.dataset.plot), data, themed(layout), config);
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();
