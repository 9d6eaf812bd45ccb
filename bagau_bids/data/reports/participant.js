// Without scripts the page lacks the sliders and the copy buttons, nothing else.
for (const mix of document.querySelectorAll(".mix")) {
  const slider = mix.querySelector("input"), figure = mix.closest("figure");
  mix.hidden = false;
  slider.addEventListener("input", () => {
    document.getElementById(figure.id + "_view4").checked = true;
    figure.style.setProperty("--mix", slider.value / 100);
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = button.nextElementSibling;
    getSelection().selectAllChildren(text);
    const done = document.execCommand("copy");
    button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  });
}
