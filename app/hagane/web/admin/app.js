/** Composition: signing in, and which section is open. */

import { prepareAppearance } from "../shared/appearance.js";
import { t } from "../shared/i18n.js";
import { loadKey, saveKey } from "../shared/keys.js";
import { request } from "./client.js";
import { openCompare } from "./compare.js";
import { openDatasets } from "./datasets.js";
import { openEngines } from "./engines.js";
import { openEval } from "./eval-runs.js";
import { openEvals } from "./evals.js";
import { openFeedback } from "./feedback.js";
import { prepareHelp } from "./fields.js";
import { openFiles } from "./files.js";
import { openJob } from "./job.js";
import { openJobs } from "./jobs.js";
import { openKeys } from "./keys.js";
import { openLogs } from "./logs.js";
import { openModels } from "./models.js";
import { attempt, describe, notice, onRefused } from "./notice.js";
import { openOverview } from "./overview.js";
import { openTrial } from "./trial.js";
import { HELP_WORDS } from "./words-help.js";
import { LEARNING_WORDS } from "./words-learning.js";
import { SERVING_WORDS } from "./words-serving.js";
import { TRAINING_WORDS } from "./words-training.js";
import { WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);

/** Each opens its section and returns how to leave it. */
const SECTIONS = {
  overview: openOverview,
  jobs: openJobs,
  job: openJob,
  files: openFiles,
  models: openModels,
  engines: openEngines,
  trial: openTrial,
  compare: openCompare,
  datasets: openDatasets,
  feedback: openFeedback,
  evals: openEvals,
  eval: openEval,
  keys: openKeys,
  logs: openLogs,
};

/** Sections that are reached from others, of which the list of sections has a link. */
const WITHIN = { job: "jobs", trial: "models", eval: "evals" };

let leave = () => {};

/** Open what the address names, such as `#/job/ftjob-1`; signed out, there is only the door. */
function open() {
  leave();
  leave = () => {};
  const signedIn = loadKey("adminKey") !== "";
  const [, wanted, argument = ""] = location.hash.split("/");
  const name = wanted in SECTIONS ? wanted : "overview";
  for (const section of Object.keys(SECTIONS)) $(section).hidden = !signedIn || section !== name;
  $("sections").hidden = $("sign-out").hidden = !signedIn;
  $("sign-in").hidden = signedIn;
  if (!signedIn) return;
  markCurrent(WITHIN[name] ?? name);
  leave = SECTIONS[name](decodeURIComponent(argument));
}

function markCurrent(name) {
  for (const link of $("sections").children) {
    if (link.hash !== `#/${name}`) {
      link.removeAttribute("aria-current");
      continue;
    }
    link.setAttribute("aria-current", "page");
    // On a narrow screen the list scrolls sideways.
    link.scrollIntoView({ block: "nearest", inline: "center" });
  }
}

function everyWord() {
  const all = [WORDS, SERVING_WORDS, LEARNING_WORDS, TRAINING_WORDS, HELP_WORDS];
  const join = (language) => Object.assign({}, ...all.map((one) => one[language]));
  return { en: join("en"), ja: join("ja") };
}

function signOut() {
  saveKey("adminKey", "");
  notice("");
  open();
  $("sign-in").elements.key.focus();
}

async function signIn(form) {
  saveKey("adminKey", form.elements.key.value.trim());
  form.elements.key.value = "";
  if (!(await attempt(() => request("admin/status")))) return;
  open();
  // The header stays in sight.
  $("content").focus({ preventScroll: true });
}

function listen() {
  $("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    signIn(event.target);
  });
  $("sign-out").addEventListener("click", signOut);
  addEventListener("hashchange", () => {
    if (location.hash && !location.hash.startsWith("#/")) return;
    notice("");
    open();
    $("content").focus();
    scrollTo(0, 0);
  });
  onRefused((error) => {
    signOut();
    notice(describe(error));
  });
}

listen();
prepareAppearance(everyWord(), open);
prepareHelp(document);
if (!loadKey("adminKey")) $("sign-in").elements.key.focus();
