// Scrolls through the slices that bagau_bids.reports.stacks made. One root element a scan.
"use strict";

// Turning the wheel to get down the page must not be caught by a picture that comes along.
const PAUSE_MS = 350;
const NOTCH = 40; // pixels of the wheel or of a touchpad for one slice
const SWIPE = 14; // pixels of a finger for one slice
const PAGE = 5; // slices
const STEPS = {
  ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1,
  PageUp: PAGE, PageDown: -PAGE, Home: -Infinity, End: Infinity,
};
const COMMANDS = { m: "toggle", " ": "toggle", n: 1, p: -1, f: "full" };
let pageWasScrolled = -Infinity;

addEventListener("wheel", (event) => {
  if (!event.target.closest?.(".viewer .stack")) pageWasScrolled = event.timeStamp;
}, { capture: true, passive: true });

class Plane {
  constructor(viewer, content, element) {
    Object.assign(this, content, { viewer, element });
    this.stack = element.querySelector(".stack");
    this.picture = element.querySelector("img");
    this.found = element.querySelector(".found");
    this.heat = element.querySelector("image");
    this.cross = element.querySelector(".cross");
    this.slider = element.querySelector(".slice");
    this.place = element.querySelector(".place");
    this.slider.hidden = false;
    this.shown = Number(this.slider.defaultValue);
    this.slider.value = this.shown;
    this.slider.addEventListener("input", () => viewer.go(this, Number(this.slider.value)));
    element.addEventListener("pointerdown", () => { viewer.active = this; });
    element.addEventListener("focusin", () => { viewer.active = this; });
    this.listenToWheel();
    this.listenToPointer();
  }

  get last() { return this.pictures.length - 1; }

  listenToWheel() {
    let turned = 0;
    this.stack.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return;
      if (event.timeStamp - pageWasScrolled < PAUSE_MS) {
        pageWasScrolled = event.timeStamp;
        return;
      }
      event.preventDefault();
      turned += event.deltaMode ? Math.sign(event.deltaY) * NOTCH : event.deltaY;
      if (Math.abs(turned) < NOTCH) return;
      this.viewer.active = this;
      this.viewer.go(this, this.shown - Math.sign(turned));
      turned = 0;
    }, { passive: false });
  }

  listenToPointer() {
    let swiped = null;
    this.stack.addEventListener("pointerdown", (event) => {
      swiped = event.pointerType === "touch" ? event.clientX : null;
    });
    this.stack.addEventListener("pointermove", (event) => {
      const steps = swiped === null ? 0 : Math.trunc((event.clientX - swiped) / SWIPE);
      if (!steps) return;
      swiped += steps * SWIPE;
      this.viewer.go(this, this.shown + steps);
    });
    this.stack.addEventListener("click", (event) => {
      const box = this.stack.getBoundingClientRect();
      this.viewer.goTo(this, [
        (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height,
      ]);
    });
  }

  draw() {
    const number = this.shown;
    this.picture.src = this.source(number);
    this.found.setAttribute("d", this.paths[number] ?? "");
    const heat = this.probabilities[number];
    if (heat) this.heat.setAttribute("href", `data:image/png;base64,${heat}`);
    else this.heat.removeAttribute("href");
    this.slider.value = number;
    const area = this.areas_mm2[number];
    const found = area ? `, WMH ${area < 100 ? area.toFixed(0) + " mm²" : (area / 100).toFixed(1) + " cm²"}` : "";
    const text = `${this.name} slice ${this.first + number * this.step} of ${this.total}, ` +
      `${"xyz"[this.axis]} = ${this.positions_mm[number].toFixed(0)} mm${found}`;
    this.place.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
    this.stack.setAttribute("aria-label", text);
    for (const near of [number - 1, number + 1]) if (this.pictures[near]) new Image().src = this.source(near);
  }

  source(number) { return `data:${this.viewer.mediaType};base64,${this.pictures[number]}`; }

  // Lines where the other planes lie, in half voxels; high positions are on the left and on top.
  drawCross(planes) {
    const [across, down] = this.axes.map((axis) => planes.find((plane) => plane.axis === axis));
    if (!across || !down) return;
    const x = 2 * (this.columns - across.shown * across.step) - 1;
    const y = 2 * (this.rows - down.shown * down.step) - 1;
    this.cross.setAttribute("d", `M${x} 0V${2 * this.rows}M0 ${y}H${2 * this.columns}`);
  }
}

class Viewer {
  constructor(root) {
    this.root = root;
    const content = JSON.parse(root.querySelector("script").textContent);
    this.mediaType = content.media_type;
    const elements = root.querySelectorAll(".plane");
    this.planes = content.planes.map((plane, number) => new Plane(this, plane, elements[number]));
    this.active = this.planes[0];
    this.buttons = [...root.querySelectorAll("[data-show]")];
    this.over = this.buttons[0]?.dataset.show;
    this.listen();
    for (const part of root.querySelectorAll(".tools, .keys, .scale")) part.hidden = false;
    for (const plane of this.planes) plane.draw();
    this.drawCrosses();
  }

  listen() {
    this.root.addEventListener("keydown", (event) => this.press(event));
    this.root.addEventListener("click", (event) => this.command(event));
    for (const level of this.root.querySelectorAll("[data-level]")) {
      level.value = 100;
      level.addEventListener("input", () => this.setLevel(level));
      level.addEventListener("dblclick", () => { level.value = 100; this.setLevel(level); });
    }
    if (!this.root.requestFullscreen) this.root.querySelector("[data-full]").remove();
  }

  press(event) {
    const onButton = event.target.closest("button, [data-level]");
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.dataset.level) return;
    if (event.key === " " && onButton) return;
    const command = COMMANDS[event.key];
    if (event.key in STEPS) this.go(this.active, this.active.shown + STEPS[event.key]);
    else if (command === "toggle") this.show(this.root.dataset.shown === "FLAIR only" ? this.over : "FLAIR only");
    else if (command === "full") this.toggleFullScreen();
    else if (command) this.jump(command);
    else return;
    event.preventDefault();
  }

  command(event) {
    const button = event.target.closest("button");
    if (!button) return;
    const { show, only, jump, full } = button.dataset;
    if (show !== undefined) this.show(show);
    if (only !== undefined) this.showPlanes(only);
    if (jump !== undefined) this.jump(Number(jump));
    if (full !== undefined) this.toggleFullScreen();
    // After a click with the mouse the keys go on with the slices.
    if (event.detail) this.active.stack.focus({ preventScroll: true });
  }

  show(what) {
    if (!this.buttons.length) return;
    if (what !== "FLAIR only") this.over = what;
    this.root.dataset.shown = what;
    this.press_in(this.buttons, (button) => button.dataset.show === what);
  }

  showPlanes(only) {
    for (const plane of this.planes) plane.element.hidden = only !== "" && plane.name !== only;
    this.active = this.planes.find((plane) => !plane.element.hidden);
    this.press_in(this.root.querySelectorAll("[data-only]"), (button) => button.dataset.only === only);
  }

  press_in(buttons, chosen) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(chosen(button)));
  }

  go(plane, number) {
    const shown = Math.min(Math.max(number, 0), plane.last);
    if (shown === plane.shown) return;
    plane.shown = shown;
    plane.draw();
    this.drawCrosses();
  }

  // Brings the other planes to a place in one, given as shares of its width and height.
  goTo(plane, place) {
    plane.axes.forEach((axis, side) => {
      const other = this.planes.find((candidate) => candidate.axis === axis);
      const voxel = (1 - place[side]) * (side ? plane.rows : plane.columns) - 0.5;
      if (other) this.go(other, Math.round(voxel / other.step));
    });
  }

  // To the next slice with WMH in a direction; stays where there is none.
  jump(direction) {
    const { areas_mm2: areas, shown } = this.active;
    for (let number = shown + direction; number in areas; number += direction) {
      if (areas[number]) return this.go(this.active, number);
    }
  }

  drawCrosses() { for (const plane of this.planes) plane.drawCross(this.planes); }

  setLevel(level) { this.root.style.setProperty(`--${level.dataset.level}`, level.value / 100); }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.requestFullscreen?.();
  }
}

for (const root of document.querySelectorAll(".viewer")) new Viewer(root);
