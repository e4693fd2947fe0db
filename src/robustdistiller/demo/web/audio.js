// Files and the microphone → mono Float32Array at 16 kHz, and one player.
import { RATE, audiblePower } from "./acoustics.js";

const LONGEST = 15; // seconds that are kept: the page computes everything anew at every change
const SHORTEST = 400; // samples of one frame

/** Decode the bytes of an audio file; `name` is for the message. */
export async function decode(bytes, name) {
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  } catch {
    throw new Error(`${name} is not audio that this browser can read: convert it to WAV, FLAC or MP3.`);
  }
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, k) => buffer.getChannelData(k));
  return checked(mixed(channels).subarray(0, LONGEST * RATE), name);
}

/** Record `seconds` from the microphone, which is asked for here and let go of at the end. */
export async function record(seconds) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
  } catch {
    throw new Error("The microphone cannot be used: allow it for this page, or open a file.");
  }
  try {
    const recorder = new MediaRecorder(stream);
    const pieces = [];
    recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
    const stopped = new Promise((resolve) => recorder.addEventListener("stop", resolve, { once: true }));
    recorder.start();
    setTimeout(() => recorder.stop(), seconds * 1000);
    await stopped;
    return await decode(await new Blob(pieces).arrayBuffer(), "The recording");
  } finally {
    for (const track of stream.getTracks()) track.stop();
  }
}

/** The mean of the channels, or the loudest one where they cancel (reversed polarity). */
export function mixed(channels) {
  if (channels.length === 1) return channels[0];
  const mean = channels[0].map((_, n) => channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length);
  const powers = channels.map(audiblePower);
  const loudest = powers.indexOf(Math.max(...powers));
  return audiblePower(mean) < CANCELLED * powers[loudest] ? channels[loudest] : mean;
}
const CANCELLED = 0.05; // share of the loudest channel's power below which the mean of the channels has cancelled

function checked(wave, name) {
  if (wave.length < SHORTEST) throw new Error(`${name} is shorter than one frame (25 ms): give a longer one.`);
  if (!wave.every(Number.isFinite)) throw new Error(`${name} holds samples that are not numbers.`);
  if (!(audiblePower(wave) > 1e-10)) throw new Error(`${name} is silent: give another one.`);
  return new Float32Array(wave);
}

/** Plays one sound at a time; a second call to `play` replaces the first. */
export class Player {
  play(wave) {
    this.stop();
    this.context ??= new AudioContext();
    this.context.resume();
    const buffer = this.context.createBuffer(1, wave.length, RATE);
    buffer.copyToChannel(wave, 0);
    this.source = this.context.createBufferSource();
    this.source.buffer = buffer;
    this.source.connect(this.context.destination);
    this.source.start();
  }

  stop() {
    this.source?.stop();
    this.source = null;
  }
}
