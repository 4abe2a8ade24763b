from concurrent.futures import ThreadPoolExecutor

from optserve_server.registry import usage
from optserve_server.registry.usage import Counts


def test_what_several_servers_count_adds_up(database):
    """From the first count on, which both may be about to write."""

    def count(_):
        with database.session(write=True) as db_session:
            usage.add(db_session, {"ada": Counts(1, 2, 3, 2**40), "grace": Counts(requests=1)})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(20)))
    with database.session() as db_session:
        assert usage.get(db_session, "ada") == Counts(20, 40, 60, 20 * 2**40)
        assert usage.get(db_session, "grace") == Counts(requests=20)
        assert usage.get(db_session, "nobody") == Counts()
