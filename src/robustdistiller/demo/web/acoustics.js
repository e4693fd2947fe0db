// The acoustic laws of the library, on Float32Arrays at 16 kHz: speech goes through a room with its direct path at lag 0
// and keeps its level; noise is added at an SNR that is measured against the reverberant speech.
export const RATE = 16000;
const LOWEST_HZ = 20; // below is infrasound: no part of a level or an SNR
const ORDER = 8; // of the high pass: 48 dB an octave
const EDGE = RATE / 2; // samples that the high pass looks beyond either end
const FADE = RATE / 50; // samples over which the end of a repeated noise fades into its beginning

const known = new Map();

/** cos and sin of the first half of a turn in `length` steps, computed once. */
function rotations(length, sign) {
  const key = sign * length;
  if (!known.has(key)) {
    const angle = (sign * 2 * Math.PI) / length;
    known.set(key, {
      cos: Float64Array.from({ length: length / 2 }, (_, k) => Math.cos(angle * k)),
      sin: Float64Array.from({ length: length / 2 }, (_, k) => Math.sin(angle * k)),
    });
  }
  return known.get(key);
}

/** In-place radix-2 transform of `re + i·im` (Float64Arrays, a power of two long); `inverse` is scaled by 1/N. */
export function fft(re, im, inverse = false) {
  const size = re.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let length = 2; length <= size; length <<= 1) {
    const half = length >> 1;
    const { cos, sin } = rotations(length, inverse ? 1 : -1);
    for (let start = 0; start < size; start += length) {
      for (let k = 0; k < half; k++) {
        const a = start + k;
        const b = a + half;
        const x = re[b] * cos[k] - im[b] * sin[k];
        const y = re[b] * sin[k] + im[b] * cos[k];
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
  if (inverse) {
    for (let i = 0; i < size; i++) {
      re[i] /= size;
      im[i] /= size;
    }
  }
}

/** Real `wave` with zeros up to `size` → its transform {re, im}. */
function spectrum(wave, size) {
  const re = new Float64Array(size);
  re.set(wave);
  const im = new Float64Array(size);
  fft(re, im);
  return { re, im };
}

const powerOfTwo = (least) => 2 ** Math.ceil(Math.log2(least));

/** Mean square of `wave`. */
export function power(wave) {
  let sum = 0;
  for (const x of wave) sum += x * x;
  return wave.length ? sum / wave.length : 0;
}

/** `wave` without its mean and what lies below 20 Hz, in phase; continued by odd reflection beyond its ends. */
export function highPass(wave) {
  const edge = Math.min(EDGE, wave.length - 1);
  const last = wave.length - 1;
  const padded = new Float64Array(wave.length + 2 * edge);
  padded.set(wave, edge);
  for (let n = 1; n <= edge; n++) {
    padded[edge - n] = 2 * wave[0] - wave[n];
    padded[edge + last + n] = 2 * wave[last] - wave[last - n];
  }
  const mean = padded.reduce((sum, x) => sum + x, 0) / padded.length;
  const size = powerOfTwo(padded.length);
  const { re, im } = spectrum(padded.map((x) => x - mean), size);
  for (let k = 0; k < size; k++) {
    const hertz = Math.max((Math.min(k, size - k) * RATE) / size, 1e-3);
    const gain = (1 + (LOWEST_HZ / hertz) ** (2 * ORDER)) ** -0.5;
    re[k] *= gain;
    im[k] *= gain;
  }
  fft(re, im, true);
  return Float32Array.from(re.subarray(edge, edge + wave.length));
}

/** What levels and SNRs refer to: the mean square without the mean and infrasound. */
export const audiblePower = (wave) => power(highPass(wave));

/** `speech` as it sounds in a room: `response` {samples, direct}, as long as it was, at its own level. */
export function inRoom(speech, response) {
  const size = powerOfTwo(speech.length + response.samples.length - 1);
  const a = spectrum(speech, size);
  const b = spectrum(response.samples, size);
  for (let k = 0; k < size; k++) {
    [a.re[k], a.im[k]] = [a.re[k] * b.re[k] - a.im[k] * b.im[k], a.re[k] * b.im[k] + a.im[k] * b.re[k]];
  }
  fft(a.re, a.im, true);
  const wet = Float32Array.from(a.re.subarray(response.direct, response.direct + speech.length));
  const level = audiblePower(wet);
  return level > 0 ? scaled(wet, Math.sqrt(audiblePower(speech) / level)) : speech;
}

/** `noise` from its beginning, repeated until it has `length` samples; its end fades into its beginning at constant power. */
export function looped(noise, length) {
  if (noise.length >= length) return noise.subarray(0, length);
  const fade = Math.min(FADE, noise.length >> 2);
  const period = noise.length - fade;
  const end = noise.subarray(period);
  const beginning = noise.subarray(0, fade);
  const norm = Math.sqrt(power(end) * power(beginning)) * fade;
  const correlation = norm > 0 ? end.reduce((sum, x, n) => sum + x * beginning[n], 0) / norm : 0;
  const turn = Float32Array.from(noise.subarray(0, period));
  for (let n = 0; n < fade; n++) {
    const angle = ((n + 0.5) * Math.PI) / 2 / fade;
    const mixed = end[n] * Math.cos(angle) + beginning[n] * Math.sin(angle);
    turn[n] = mixed / Math.sqrt(Math.max(1 + correlation * Math.sin(2 * angle), 0.1));
  }
  return Float32Array.from({ length }, (_, n) => (n < period ? noise[n] : turn[n % period]));
}

/**
 * What is heard of `speech`.
 * `room`: {samples, direct} or null; `noise`: samples at least as long as the speech, or null; `snr` in dB.
 */
export function contaminate(speech, { room = null, noise = null, snr = 0 }) {
  const heard = room ? inRoom(speech, room) : Float32Array.from(speech);
  if (!noise) return heard;
  const part = looped(noise, speech.length);
  const level = power(part);
  if (!(level > 0)) return heard;
  const gain = Math.sqrt(audiblePower(speech) / level) * 10 ** (-snr / 20);
  return heard.map((x, n) => x + gain * part[n]);
}

function scaled(wave, gain) {
  return wave.map((x) => x * gain);
}
