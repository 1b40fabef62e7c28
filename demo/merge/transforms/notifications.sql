-- cutover: parent_key = notification_id
SELECT n.id AS notification_id, recipient, n.request_id, n.kind, n.payload ->> 'message' AS message, n.payload, n.sent_at
FROM notifications n, LATERAL unnest(n.recipients) AS recipient
