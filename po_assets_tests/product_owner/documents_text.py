"""A perfect answer and its requirements, from which the tests take things away."""

REQUIREMENTS = """\
title: Route Planner
functional_requirements:
- id: FR001
  description: Dispatchers assign delivery routes to drivers.
- id: FR002
  description: Drivers confirm each delivery with a photo.
non_functional_requirements:
- id: NFR001
  description: A route is computed within five seconds.
constraints:
- id: C001
  description: The service runs in the existing cluster.
"""

VISION = """\
product_name: Route Planner
product_summary: A planner that helps dispatchers of small delivery companies assign routes, follow drivers on the way
  and prove every delivery, so that customers get their parcels on time.
target_users:
- Dispatchers
- Drivers
value_proposition:
- Fewer kilometres per parcel
- Proof of every delivery
key_capabilities:
- Route assignment
- Delivery confirmation
non_goals:
- Warehouse management
success_metrics:
- 10 % fewer kilometres
- 95 % of deliveries confirmed
last_updated: '2026-05-14'
"""

REVIEW = """\
status: needs_adjustment
summary:
- The requirements serve the planner.
- Customer notices are missing.
requirements_alignment:
  aligned:
  - FR001 assigns routes.
  - FR002 proves deliveries.
  - NFR001 keeps planning fast.
  - C001 fits the operation.
  gaps:
  - No requirement tells customers when a parcel arrives.
  conflicts:
  - None of the requirements contradicts the vision, but C001 limits growth.
recommended_actions:
- Add a requirement for customer notices.
- Keep FR001 and FR002 as they are.
narrative: The requirements cover planning and proof of delivery well. What customers see is missing, and the vision
  promises parcels on time, so a notice belongs into the first release of the planner.
"""
