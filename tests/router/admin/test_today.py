"""What each tenant has used since midnight UTC."""

from m3_console.scene import bill
from m3_router.admin.today import SpendToday, day_of

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


def test_a_tenants_bills_add_up_by_tier() -> None:
    spend = SpendToday()

    spend.read(
        [
            bill(time=NOON, cost_nanousd=5),
            bill(time=NOON, cost_nanousd=7, service_tier="priority"),
            bill(time=NOON, cost_nanousd=11, service_tier="priority", context_tier="long"),
            bill(time=NOON, tenant="zeta", cost_nanousd=0),
        ]
    )

    acme, zeta = spend.tenants(NOON)
    assert acme.cost_by_tier_nanousd == {"standard": 5, "priority": 7, "priority-long": 11}
    assert (acme.cost_nanousd, acme.requests, acme.input_tokens, acme.cached_tokens) == (23, 3, 3000, 1800)
    assert (zeta.requests, zeta.cost_by_tier_nanousd) == (1, {})


def test_a_new_day_begins_at_midnight_utc_whether_somebody_asks_or_not() -> None:
    spend = SpendToday()
    midnight = NOON + 12 * 3600

    spend.read([bill(time=NOON)])
    assert [tenant.requests for tenant in spend.tenants(midnight - 1)] == [1]
    assert spend.tenants(midnight) == []

    spend.read([bill(time=midnight - 1), bill(time=midnight + 1)])
    assert [tenant.requests for tenant in spend.tenants(midnight + 2)] == [1]


def test_a_day_is_written_as_people_write_it() -> None:
    assert day_of(NOON) == "2026-11-21"
