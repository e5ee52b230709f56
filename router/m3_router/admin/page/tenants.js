// What each tenant has spent today, split by tier, and how much of its plan is left.

import { byId, h, keyed, setShare, setText } from "./dom.js";
import { count, percent, usd } from "./format.js";

const RANKS = ["priority", "priority-long", "standard", "standard-long", "batch", "batch-long"];
const NEAR = 0.8;

export function showTenants(state) {
  const most = Math.max(...state.tenants.map((tenant) => tenant.cost_nanousd), 1);
  byId("tenants-empty").hidden = state.tenants.length > 0;
  const more = state.tenants_left_out ? `, and ${count(state.tenants_left_out)} more that spent less` : "";
  setText(byId("tenants-note"), `${state.day}, UTC${more}`);
  keyed(byId("tenant-list"), state.tenants.map((tenant) => ({ tenant, most })), ({ tenant }) => tenant.name, tenantRow);
}

function tenantRow() {
  const name = h("b.name");
  const plan = h("span.muted.marks");
  const cost = h("b");
  const bar = h("div.meter");
  const text = h("span.figure-text");
  const limits = h("ul.limits");
  const element = h(
    "li.row.tenant", {},
    h("div.row-head", {}, name, plan, cost),
    h("div.measure", {}, bar, text),
    limits,
  );
  return {
    element,
    update: ({ tenant, most }) => {
      setText(name, tenant.name);
      setText(plan, tenant.plan ?? "");
      setText(cost, usd(tenant.cost_nanousd));
      const parts = RANKS.filter((tier) => tenant.cost_by_tier_nanousd[tier]).map((tier) => ({
        tier,
        nanousd: tenant.cost_by_tier_nanousd[tier],
        share: tenant.cost_by_tier_nanousd[tier] / most,
      }));
      keyed(bar, parts, (part) => part.tier, ({ tier }) => tierPart(tier));
      const hit = tenant.input_tokens ? `, ${percent(tenant.cached_tokens / tenant.input_tokens)} cached` : "";
      setText(text, `${count(tenant.requests)} requests · ${count(tenant.input_tokens)} in${hit} · ${count(tenant.output_tokens)} out`);
      keyed(limits, tenant.limits, (limit) => limit.name, limitItem);
    },
  };
}

function tierPart(tier) {
  const element = h(`i.part.lane-${tier}`);
  return {
    element,
    update: ({ nanousd, share }) => {
      setShare(element, share);
      element.title = `${tier} ${usd(nanousd)}`;
    },
  };
}

function limitItem() {
  const label = h("span");
  const fillPart = h("i.part");
  const element = h("li.limit", {}, h("div.meter.small-meter", {}, fillPart), label);
  return {
    element,
    update: (limit) => {
      const share = limit.used / limit.limit;
      const show = limit.unit === "nanousd" ? usd : count;
      setShare(fillPart, share);
      fillPart.dataset.tone = share >= 1 ? "bad" : share >= NEAR ? "warn" : "";
      setText(label, `${show(limit.used)} of ${show(limit.limit)} ${limit.name.replaceAll("_", " ")}`);
    },
  };
}
