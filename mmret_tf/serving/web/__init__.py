"""The search page and its REST service (检索服务): a run in a browser. Section 6.

Read `service` first, then `app`. Needs the extra `web`.
"""
