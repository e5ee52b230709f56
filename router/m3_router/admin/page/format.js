// Numbers as people read them. Pure; no unit is left out, and what is not known is a dash.

export const UNKNOWN = "–";

/** 999, 1.2K, 34K, 1.2M */
export function count(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "K"]];
  for (const [size, unit] of units) {
    if (Math.abs(value) >= size) {
      const scaled = value / size;
      return `${scaled >= 99.5 ? Math.round(scaled) : trim(scaled.toFixed(scaled >= 9.95 ? 0 : 1))}${unit}`;
    }
  }
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : trim(value.toFixed(1));
}

/** Nano-dollars as dollars: $0.00042, $1.27, $3,481 */
export function usd(nanousd) {
  if (nanousd === null || nanousd === undefined) return UNKNOWN;
  const value = nanousd / 1e9;
  if (value === 0) return "$0";
  if (value >= 1000) return `$${Math.round(value).toLocaleString("en-US")}`;
  if (value >= 0.995) return `$${value.toFixed(2)}`;
  const digits = Math.min(Math.max(1 - Math.floor(Math.log10(value)), 2), 9);
  return `$${value.toFixed(digits)}`;
}

/** 0.4 ms, 85 ms, 1.2 s, 3 min */
export function milliseconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value === 0) return "0 ms";
  if (value < 9.95) return `${trim(value.toFixed(1))} ms`;
  if (value < 999.5) return `${Math.round(value)} ms`;
  return seconds(value / 1000);
}

/** 1.2 s, 40 s, 3 min, 2 h, 5 d */
export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 9.95) return `${trim(value.toFixed(1))} s`;
  if (value < 99.5) return `${Math.round(value)} s`;
  if (value < 5970) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

/** A share of 0 to 1: 100 %, 99.4 %, 93 %, 3 %. Rounds down, so that 100 % means all of it. */
export function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return UNKNOWN;
  if (share >= 1) return "100 %";
  const value = Math.floor(share * 1000) / 10;
  return `${value >= 99 && value % 1 ? value.toFixed(1) : Math.floor(value)} %`;
}

export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 1024) return `${value} B`;
  if (value < 2 ** 20) return `${Math.round(value / 1024)} KiB`;
  if (value < 2 ** 30) return `${Math.round(value / 2 ** 20)} MiB`;
  return `${trim((value / 2 ** 30).toFixed(1))} GiB`;
}

/** Time of day of seconds since the epoch, in the reader's zone: 14:03:27 */
export function clock(epochSeconds) {
  return new Date(epochSeconds * 1000).toLocaleTimeString("en-GB");
}

function trim(text) {
  return text.replace(/\.0+$/, "");
}
