"""What each tenant has used since midnight UTC."""

from m3_console.scene import bill
from m3_router.admin.document import LimitNow
from m3_router.admin.today import day_of, tenants_of
from m3_router.money.bill import Bill
from m3_router.money.spend import Spend
from m3_router.money.spend_rows import Row

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


def rows_of(*bills: Bill) -> list[Row]:
    spend = Spend()
    for number, one in enumerate(bills, 1):
        one.number = number
    spend.count(bills)
    return spend.rows()


def test_a_tenants_bills_add_up_by_tier() -> None:
    rows = rows_of(
        bill(time=NOON, cost_nanousd=5),
        bill(time=NOON, cost_nanousd=7, service_tier="priority"),
        bill(time=NOON, cost_nanousd=11, service_tier="priority", context_tier="long"),
        bill(time=NOON, tenant="zeta", cost_nanousd=0),
    )

    acme, zeta = sorted(tenants_of(rows), key=lambda tenant: tenant.name)
    assert acme.cost_by_tier_nanousd == {"standard": 5, "priority": 7, "priority-long": 11}
    assert (acme.cost_nanousd, acme.requests, acme.input_tokens, acme.cached_tokens) == (23, 3, 3000, 1800)
    assert (zeta.requests, zeta.cost_by_tier_nanousd) == (1, {})


def test_rows_of_several_models_are_one_tenant_with_its_plan() -> None:
    rows = rows_of(
        bill(time=NOON, model="a", service_tier="batch", context_tier="long", cost_nanousd=3),
        bill(time=NOON, model="b", service_tier="batch", context_tier="long", cost_nanousd=4),
    )
    limit = LimitNow("tokens_per_day", "tokens", 1, 2)

    (acme,) = tenants_of(rows, lambda name: ("plus", [limit]) if name == "acme" else (None, []))

    assert (acme.requests, acme.cost_by_tier_nanousd, acme.plan, acme.limits) == (2, {"batch-long": 7}, "plus", [limit])


def test_a_day_is_written_as_people_write_it() -> None:
    assert day_of(NOON) == "2026-11-21"
