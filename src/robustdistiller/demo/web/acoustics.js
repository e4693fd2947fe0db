// The acoustic laws of the library, on Float32Arrays at 16 kHz: speech goes through a room with its direct path at lag 0
// and keeps its level; noise is added at an SNR that is measured against the reverberant speech.
export const RATE = 16000;

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
    const angle = ((inverse ? 2 : -2) * Math.PI) / length;
    const cos = Float64Array.from({ length: half }, (_, k) => Math.cos(angle * k));
    const sin = Float64Array.from({ length: half }, (_, k) => Math.sin(angle * k));
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
  const level = power(wet);
  return level > 0 ? scaled(wet, Math.sqrt(power(speech) / level)) : speech;
}

/** `noise` from its beginning, repeated with crossfades of equal power until it has `length` samples. */
export function looped(noise, length) {
  if (noise.length >= length) return noise.subarray(0, length);
  const fade = Math.min(Math.round(0.05 * RATE), noise.length >> 1);
  const out = new Float32Array(length);
  for (let start = 0; start < length; start += noise.length - fade) {
    for (let n = 0; n < noise.length && start + n < length; n++) {
      const rising = start > 0 && n < fade ? Math.sin(((n + 0.5) / fade) * (Math.PI / 2)) : 1;
      const left = noise.length - 1 - n;
      const falling = left < fade ? Math.sin(((left + 0.5) / fade) * (Math.PI / 2)) : 1;
      out[start + n] += rising * falling * noise[n];
    }
  }
  return out;
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
  const gain = Math.sqrt(power(speech) / level) * 10 ** (-snr / 20);
  return heard.map((x, n) => x + gain * part[n]);
}

function scaled(wave, gain) {
  return wave.map((x) => x * gain);
}
