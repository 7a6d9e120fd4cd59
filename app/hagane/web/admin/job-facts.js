/** Everything that a job was made with, and what came of it. */

import { t } from "../shared/i18n.js";
import { moment } from "./list.js";

/** Methods that have a name in both languages. */
const METHODS = ["supervised", "dpo", "orpo", "kto"];

/**
 * How a job learns, in words.
 * @param {object} job as one of fine-tuning
 * @returns {string}
 */
export function methodOf({ method: { type } }) {
  return METHODS.includes(type) ? t(type) : type;
}

/**
 * @param {object} job as one of fine-tuning
 * @returns {[string, ?(string | number | Node)][]} for `showFacts`
 */
export function factsOf(job) {
  return [...made(job), ...outcome(job)];
}

function made(job) {
  const { hyperparameters: used, extra } = job;
  const plan = extra.plan ?? {};
  return [
    [t("identifier"), job.id],
    [t("baseModel"), job.model],
    [t("method"), methodOf(job)],
    [t("trainingFile"), job.training_file],
    [t("validationFile"), job.validation_file ?? (job.training_file ? t("heldOut") : null)],
    [t("epochs"), used.n_epochs],
    [t("batchSize"), used.batch_size],
    [t("rateMultiplier"), used.learning_rate_multiplier],
    [t("beta"), used.beta],
    [t("rank"), extra.rank],
    [t("alpha"), extra.alpha],
    [t("targets"), extra.target_modules?.join(", ")],
    [t("adapterKind"), extra.full ? t("fullWeights") : kinds(extra)],
    [t("quantize"), extra.quantize],
    [t("sequenceLength"), extra.sequence_length],
    [t("patience"), extra.patience],
    [t("seeds"), extra.seeds],
    [t("noise"), extra.neftune_alpha],
    [t("teacher"), extra.teacher],
    [t("newTokens"), extra.trained_tokens?.join(", ")],
    [t("checkpointing"), { true: t("always"), false: t("never") }[extra.checkpointing]],
    [t("promoteWhen"), { if_better: t("ifBetter"), always: t("always"), manual: t("manually") }[extra.promote]],
    [t("learningRate"), plan.learning_rate?.toPrecision(3)],
    [t("steps"), plan.steps],
    [t("warmup"), plan.warmup_steps],
    [t("checkpointEvery"), plan.checkpoint_every],
    [t("seed"), String(job.seed)],
    ...Object.entries(job.metadata ?? {}).map(([name, value]) => [`${t("metadata")}: ${name}`, value]),
  ];
}

function kinds({ rslora, dora }) {
  return [rslora && "rsLoRA", dora && "DoRA"].filter(Boolean).join(", ");
}

function outcome({ created_at: created, finished_at: finished, trained_tokens: tokens, extra: { result } }) {
  return [
    [t("created"), moment(created)],
    [t("finished"), finished ? moment(finished) : null],
    [t("trainedTokens"), tokens],
    [t("chosenStep"), result?.step],
    [t("baseLoss"), result?.base_valid_loss],
    [t("tunedLoss"), result?.valid_loss],
    [t("directory"), result?.directory],
    ...Object.entries(result?.bits_per_byte ?? {}).map(([name, bits]) => [
      `${t("bitsPerByte")}: ${name}`, bits,
    ]),
  ];
}
