// What the page says, in English and Chinese, and how it writes numbers.

import { label } from "./scale.js";

const WORDS = {
  en: {
    title: "Watching runs",
    runs: "Runs", noRuns: "No run yet. One that starts in {0} appears here by itself.",
    leftOut: "{0} more runs are not shown.",
    all: "all", none: "none", shown: "shown",
    x: "Over", step: "steps", tokens: "tokens", time: "time",
    hours: "hours", minutes: "minutes", seconds: "seconds",
    smoothing: "Smoothing", log: "Log scale", held: "held out", train: "training",
    key: "Lines are smoothed training steps, over their range; dots are held out.",
    curves: "Curves", stage: "Of this stage", optimizer: "Optimizer", machine: "Machine",
    sources: "Sources", more: "More",
    samples: "Samples", noSamples: "This run has written nothing yet.", nothing: "(nothing)",
    moment: "Moment",
    compare: "Settings", between: "Settings of", and: "beside", defaults: "the defaults",
    setting: "setting", meaning: "meaning",
    same: "They have the same settings.",
    events: "Events", noEvents: "Nothing happened besides training.", what: "what",
    state_waiting: "starting", state_running: "running", state_finished: "finished",
    state_stopped: "stopped", state_diverged: "diverged",
    at: "step {0}", ago: "{0} ago", of: "{0} of {1}", left: "{0} left", reading: "reading, {0} left",
    lost: "The server has gone: start sparrow watch again. What is shown is from before.",
    theme: "Theme", theme_auto: "auto", theme_light: "light", theme_dark: "dark",
    language: "中文", choose: "Choose a run to see its curves.",
    waiting: "No row yet.", above: "up to {0} above the frame", skipped: "{0} skipped",
    chartHelp: "Arrow keys move along the curve, Escape leaves.",
    loss: "Loss", bits_per_byte: "Bits per byte", lr: "Learning rate", grad_norm: "Gradient norm",
    tokens_per_second: "Speed", mfu: "Utilization", memory_bytes: "Memory",
    reward: "Reward", accuracy: "Accuracy", margin: "Margin", kl: "KL divergence",
    entropy: "Entropy", length: "Answer length", clipped: "Clipped ratios", ratio: "Ratio",
    truncated: "Cut at the limit", zero_variance: "Groups that agree", value_loss: "Value loss",
    chosen_reward: "Reward of the chosen", rejected_reward: "Reward of the rejected",
    failed_rewards: "Rewards that failed", balance: "Balance of experts",
    unit_loss: "nats per token", unit_grad_norm: "before clipping",
    unit_tokens_per_second: "tokens per second", unit_mfu: "share of the ceiling",
    unit_memory_bytes: "peak, bytes",
  },
  zh: {
    title: "观察训练",
    runs: "训练", noRuns: "还没有训练。在 {0} 里开始的训练会自动出现在这里。",
    leftOut: "另有 {0} 个训练未显示。",
    all: "全选", none: "全不选", shown: "显示",
    x: "横轴", step: "步数", tokens: "词元", time: "时间",
    hours: "小时", minutes: "分钟", seconds: "秒",
    smoothing: "平滑", log: "对数刻度", held: "验证集", train: "训练",
    key: "线是平滑后的训练步，浅色是其范围；圆点是验证集。",
    curves: "曲线", stage: "本阶段", optimizer: "优化器", machine: "机器",
    sources: "数据来源", more: "其他",
    samples: "样本", noSamples: "这个训练还没有写出任何东西。", nothing: "（空）",
    moment: "时刻",
    compare: "设置", between: "比较", and: "与", defaults: "默认值",
    setting: "设置项", meaning: "含义",
    same: "两者的设置相同。",
    events: "事件", noEvents: "除训练之外没有发生别的事。", what: "内容",
    state_waiting: "启动中", state_running: "运行中", state_finished: "已完成",
    state_stopped: "已停止", state_diverged: "已发散",
    at: "第 {0} 步", ago: "{0}前", of: "{0} / {1}", left: "剩余 {0}", reading: "读取中，剩余 {0}",
    lost: "服务已停止：请重新运行 sparrow watch。当前显示的是此前的内容。",
    theme: "主题", theme_auto: "自动", theme_light: "浅色", theme_dark: "深色",
    language: "English", choose: "选择一个训练来查看曲线。",
    waiting: "还没有数据。", above: "图框之上最高到 {0}", skipped: "跳过 {0} 步",
    chartHelp: "方向键沿曲线移动，Esc 离开。",
    loss: "损失", bits_per_byte: "每字节比特数", lr: "学习率", grad_norm: "梯度范数",
    tokens_per_second: "速度", mfu: "利用率", memory_bytes: "内存",
    reward: "奖励", accuracy: "准确率", margin: "间隔", kl: "KL 散度",
    entropy: "熵", length: "回答长度", clipped: "被裁剪的比率", ratio: "比率",
    truncated: "达到长度上限", zero_variance: "组内一致", value_loss: "价值损失",
    chosen_reward: "被选回答的奖励", rejected_reward: "被拒回答的奖励",
    failed_rewards: "失败的奖励", balance: "专家均衡",
    unit_loss: "奈特 / 词元", unit_grad_norm: "裁剪前",
    unit_tokens_per_second: "词元 / 秒", unit_mfu: "占上限的比例",
    unit_memory_bytes: "峰值，字节",
  },
};

let language = "en";

export function speak(name) {
  language = name in WORDS ? name : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `${say("title")} · Sparrow`;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
  }
}

export const spoken = () => language;

export const missing = () =>
  Object.keys(WORDS.en).filter((key) => !(key in WORDS.zh))
    .concat(Object.keys(WORDS.zh).filter((key) => !(key in WORDS.en)));

// A word, with what belongs into its places. One that nobody translated is shown as the log has it.
export function say(word, ...values) {
  const text = WORDS[language][word] ?? word.replaceAll("_", " ");
  return text.replace(/\{(\d)\}/g, (_, place) => values[place]);
}

export const knows = (word) => word in WORDS.en;

// Counts in three digits: 21.4k, 26.9M.
export function count(amount) {
  if (amount == null) return "";
  for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(amount) >= scale * 0.9995) return trim((amount / scale).toPrecision(3)) + letter;
  }
  return trim(amount.toPrecision(3));
}

// Numbers with their thousands apart: 12,000.
export const whole = (amount) => (amount == null ? "" : amount.toLocaleString("en-US"));

export function bytes(amount) {
  for (const [scale, name] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (Math.abs(amount) >= scale * 0.9995) return `${trim((amount / scale).toPrecision(3))} ${name}`;
  }
  return `${Math.round(amount)} B`;
}

// How long: 52 s, 3 min 2 s, 1 h 12 min.
export function duration(seconds) {
  if (seconds == null) return "";
  const [h, min, s] = language === "zh" ? ["小时", "分", "秒"] : ["h", "min", "s"];
  const all = Math.round(seconds);
  if (all < 60) return `${all} ${s}`;
  const minutes = Math.floor(all / 60);
  if (minutes < 60) return `${minutes} ${min}${all % 60 ? ` ${all % 60} ${s}` : ""}`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} ${h} ${minutes % 60} ${min}`;
  return language === "zh" ? `${Math.round(minutes / 1440)} 天` : `${Math.round(minutes / 1440)} days`;
}

// A figure as its panel writes it.
export function figure(key, value) {
  if (value == null) return "–";
  const name = key.replace(/^val_/, "").split("/")[0];
  if (name === "lr") return value.toExponential(2);
  if (name === "tokens_per_second") return count(value);
  if (name === "memory_bytes") return bytes(value);
  if (name === "mfu") return `${Math.round(value * 100)} %`;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3);
}

// A tick in the unit of its panel.
export function tickText(key, tick, all) {
  if (key === "memory_bytes" && tick) return bytes(tick);
  return key === "mfu" ? `${label(tick * 100, all.map((other) => other * 100))} %` : label(tick, all);
}

const trim = (digits) => (digits.includes("e") ? String(Number(digits))
  : digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits);
