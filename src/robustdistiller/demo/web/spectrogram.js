// A spectrogram on a canvas: Hann windows of 512 samples, 70 dB below the loudest point, dark to bright.
import { fft } from "./acoustics.js";

const WINDOW = 512;
const RANGE_DB = 70;
const HANN = Float64Array.from({ length: WINDOW }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / WINDOW));
// Five points of a perceptually even map from violet to yellow, interpolated.
const COLOURS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/** Draw `wave` (Float32Array, 16 kHz) over the whole canvas. */
export function drawSpectrogram(canvas, wave) {
  const columns = canvas.width;
  const rows = canvas.height;
  const bins = WINDOW / 2;
  const levels = new Float32Array(columns * bins);
  const re = new Float64Array(WINDOW);
  const im = new Float64Array(WINDOW);
  let loudest = -Infinity;
  for (let x = 0; x < columns; x++) {
    const centre = Math.round(((x + 0.5) / columns) * wave.length);
    for (let n = 0; n < WINDOW; n++) {
      re[n] = (wave[centre - WINDOW / 2 + n] ?? 0) * HANN[n];
      im[n] = 0;
    }
    fft(re, im);
    for (let k = 0; k < bins; k++) {
      const db = 10 * Math.log10(re[k] * re[k] + im[k] * im[k] + 1e-12);
      levels[x * bins + k] = db;
      if (db > loudest) loudest = db;
    }
  }
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let y = 0; y < rows; y++) {
    const bin = Math.floor(((rows - 1 - y) / rows) * bins);
    for (let x = 0; x < columns; x++) {
      const colour = shade(1 + (levels[x * bins + bin] - loudest) / RANGE_DB);
      image.data.set([...colour, 255], 4 * (y * columns + x));
    }
  }
  context.putImageData(image, 0, 0);
}

function shade(level) {
  const at = Math.min(Math.max(level, 0), 1) * (COLOURS.length - 1);
  const low = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[low].map((value, k) => value + (at - low) * (COLOURS[low + 1][k] - value));
}
