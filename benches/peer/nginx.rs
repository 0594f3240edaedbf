//! What every nginx here is told, whatever it is measured by: log, limits and request ids as podgate
//! has them, and connections that are kept.

/// In its `http` block. Where it would put what it buffers on disk comes first: nothing, here.
pub const HTTP: &str = r#"
    client_body_temp_path nginx-client_body;
    proxy_temp_path nginx-proxy;
    fastcgi_temp_path nginx-fastcgi;
    uwsgi_temp_path nginx-uwsgi;
    scgi_temp_path nginx-scgi;
    log_format requests escape=json '{"time":"$time_iso8601","request_id":"$request_id","client":"$remote_addr","method":"$request_method","path":"$uri","status":$status,"bytes":$bytes_sent,"request_time":$request_time,"upstream_response_time":"$upstream_response_time"}';
    limit_req_zone $http_authorization zone=rate:10m rate=1000000r/s;
    limit_conn_zone $http_authorization zone=connections:10m;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 64k;
"#;

/// In its `location`: limits that never bind, and bodies that are not collected.
pub const LOCATION: &str = r#"
            limit_req zone=rate burst=1000000 nodelay;
            limit_conn connections 10000;
            add_header X-Request-Id $request_id;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Request-Id $request_id;
            proxy_request_buffering off;
"#;
