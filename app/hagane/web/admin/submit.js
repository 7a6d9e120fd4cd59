/** Sending a form whose fields the server may refuse one by one. */

import { ApiError } from "../shared/api.js";
import { attempt, describe } from "./notice.js";

/**
 * Run `send`. What the server refuses stands in `complaint`, and the focus goes to the field.
 * @param {HTMLFormElement} form
 * @param {HTMLElement} complaint hidden unless something was refused
 * @param {() => Promise<void>} send
 * @returns {Promise<boolean>} whether it went well
 */
export async function submit(form, complaint, send) {
  complaint.hidden = true;
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  const button = form.querySelector(".primary");
  button.disabled = true;
  let accepted = true;
  const went = await attempt(async () => {
    try {
      await send();
    } catch (error) {
      if (!(error instanceof ApiError) || ![400, 404, 409, 422].includes(error.status)) throw error;
      accepted = false;
      complaint.textContent = describe(error);
      complaint.hidden = false;
      button.disabled = false;
      point(form, error.param ?? "");
    }
  });
  button.disabled = false;
  return went && accepted;
}

/** Lead to the field that was complained about, such as `method.dpo.hyperparameters.beta`. */
function point(form, param) {
  const name = param.split(".").findLast((part) => form.elements[part] instanceof HTMLElement);
  if (!name) return;
  const field = form.elements[name];
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}
